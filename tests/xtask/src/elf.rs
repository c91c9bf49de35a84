//! What ELF files say about themselves: the libraries that a program needs, and the description of a kernel module. It reads bytes and
//! knows no packages.

use anyhow::{Context, Result, ensure};
use object::read::elf::{Dyn, ElfFile64, FileHeader};
use object::{Endianness, Object, ObjectSection, elf};

/// The libraries that a program or a library names (DT_NEEDED).
pub fn needed(bytes: &[u8]) -> Result<Vec<String>> {
    let file = parse(bytes)?;
    let endian = file.endian();
    let sections = file.elf_section_table();
    let Some((entries, strings)) =
        sections.dynamic(endian, bytes).context("its dynamic section is damaged")?
    else {
        return Ok(Vec::new());
    };
    let strings = sections.strings(endian, bytes, strings).context("its dynamic strings are damaged")?;
    let mut names = Vec::new();
    for entry in entries.iter().filter(|entry| entry.d_tag(endian) == elf::DT_NEEDED) {
        let name = entry.string(endian, strings).context("the name of a library is damaged")?;
        names.push(String::from_utf8_lossy(name).into_owned());
    }
    Ok(names)
}

/// The `key=value` pairs of a kernel module's `.modinfo` (Linux, include/linux/moduleparam.h).
pub fn modinfo(bytes: &[u8]) -> Result<Vec<(String, String)>> {
    let file = parse(bytes)?;
    let section =
        file.section_by_name(".modinfo").context("it has no .modinfo, so it is no kernel module")?;
    let text = String::from_utf8_lossy(section.data().context("its .modinfo is damaged")?).into_owned();
    let pairs = text.split('\0').filter_map(|pair| pair.split_once('='));
    Ok(pairs.map(|(key, value)| (key.to_owned(), value.to_owned())).collect())
}

fn parse(bytes: &[u8]) -> Result<ElfFile64<'_, Endianness>> {
    let file = ElfFile64::<Endianness>::parse(bytes).context("it is no 64-bit ELF file")?;
    let machine = file.elf_header().e_machine(file.endian());
    ensure!(machine == elf::EM_AARCH64, "it is for another architecture than arm64 (e_machine {machine})");
    Ok(file)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn text_is_refused_as_no_elf_file() {
        let error = needed(b"#!/bin/sh\n").expect_err("no ELF file");
        assert!(error.to_string().contains("ELF"), "{error}");
    }
}

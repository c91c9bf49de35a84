//! What a linked Mach-O executable for arm64 asks of macOS: its oldest version, its libraries, its imports and its signature. It judges
//! nothing.

use super::version::Version;
use anyhow::{Context, Result, bail, ensure};
use object::macho::{
    CPU_TYPE_ARM64, LC_CODE_SIGNATURE, LC_LOAD_WEAK_DYLIB, MH_EXECUTE, MachHeader64, PLATFORM_MACOS,
};
use object::read::macho::{LoadCommandVariant, MachHeader, MachOFile64};
use object::read::{Object, ReadRef};
use object::{Endianness, ImportLibraryFlags, NameOrOrdinal};

/// What the binary asks for.
#[derive(Debug)]
pub struct Binary {
    /// The oldest macOS that it declares (LC_BUILD_VERSION).
    pub minimum: Version,
    pub libraries: Vec<Library>,
    pub imports: Vec<Import>,
    /// The code signature, if there is one: a sequence of blobs, of which the entitlements are one.
    pub signature: Option<Vec<u8>>,
}

/// A library that is loaded with the program.
#[derive(Debug, PartialEq, Eq)]
pub struct Library {
    pub path: String,
    /// The program also starts without it.
    pub weak: bool,
}

/// A symbol that the dynamic linker has to find.
#[derive(Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Import {
    pub library: String,
    pub name: String,
    /// The program also starts without it.
    pub weak: bool,
}

impl Binary {
    /// Reads the file. Of `bytes`, nothing is believed that does not lie within them.
    pub fn parse(bytes: &[u8]) -> Result<Binary> {
        let header = MachHeader64::<Endianness>::parse(bytes, 0).context("no 64-bit Mach-O file")?;
        let endian = header.endian()?;
        ensure!(header.cputype(endian) == CPU_TYPE_ARM64, "it is not for arm64");
        ensure!(header.filetype(endian) == MH_EXECUTE, "it is no executable");
        let (mut minimum, mut signature) = (None, None);
        let mut commands = header.load_commands(endian, bytes, 0)?;
        while let Some(command) = commands.next()? {
            match command.variant()? {
                LoadCommandVariant::BuildVersion(build, _) => {
                    ensure!(build.platform.get(endian) == PLATFORM_MACOS, "it is not for macOS");
                    let version = build.minos.get(endian);
                    minimum = Some(Version { major: version.major(), minor: version.minor() });
                }
                LoadCommandVariant::LinkeditData(data) if command.cmd() == LC_CODE_SIGNATURE => {
                    let (start, size) = (data.dataoff.get(endian), data.datasize.get(endian));
                    let found = bytes.read_bytes_at(start.into(), size.into());
                    let found = found.ok().context("its signature lies outside of the file")?;
                    signature = Some(found.to_vec());
                }
                _ => {}
            }
        }
        let minimum = minimum.context("it does not say which macOS it is for (LC_BUILD_VERSION)")?;

        // The crate reads the imports from whichever of the three tables the linker wrote: chained fixups, bind opcodes or symbols.
        let file = MachOFile64::<Endianness>::parse(bytes)?;
        let libraries =
            file.import_libraries()?.map(|library| Ok(self::library(&library?))).collect::<Result<_>>()?;
        let mut imports = file.imports()?.map(|found| import(&found?)).collect::<Result<Vec<Import>>>()?;
        imports.sort();
        imports.dedup();
        Ok(Binary { minimum, libraries, imports, signature })
    }
}

fn library(found: &object::ImportLibrary<'_>) -> Library {
    let weak = matches!(found.flags(), ImportLibraryFlags::MachO { cmd, .. } if cmd == LC_LOAD_WEAK_DYLIB);
    Library { path: String::from_utf8_lossy(found.name()).into_owned(), weak }
}

fn import(found: &object::Import<'_>) -> Result<Import> {
    let NameOrOrdinal::Name(name) = found.name() else {
        bail!("an import has no name");
    };
    Ok(Import {
        library: String::from_utf8_lossy(found.library()).into_owned(),
        name: String::from_utf8_lossy(name).into_owned(),
        weak: found.is_weak(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    const LC_SYMTAB: u32 = 0x2;
    const LC_LOAD_DYLIB: u32 = 0xc;
    const LC_BUILD_VERSION: u32 = 0x32;
    const MH_TWOLEVEL: u32 = 0x80;
    const N_UNDEFINED_EXTERNAL: u8 = 0x01;
    const N_WEAK_REFERENCE: u16 = 0x40;
    const HEADER_SIZE: usize = 32;

    fn words(values: &[u32]) -> Vec<u8> {
        values.iter().flat_map(|value| value.to_le_bytes()).collect()
    }

    fn load_dylib(command: u32, path: &str) -> Vec<u8> {
        let size = (24 + path.len() + 1).next_multiple_of(8);
        let mut bytes = words(&[command, u32::try_from(size).expect("small"), 24, 0, 0x10000, 0x10000]);
        bytes.extend_from_slice(path.as_bytes());
        bytes.resize(size, 0);
        bytes
    }

    fn build_version(platform: u32) -> Vec<u8> {
        words(&[LC_BUILD_VERSION, 24, platform, 13 << 16 | 2 << 8, 15 << 16, 0])
    }

    /// An executable with these load commands, and a symbol table with these undefined symbols of the first library.
    fn executable(mut commands: Vec<Vec<u8>>, symbols: &[(&str, u16)]) -> Vec<u8> {
        let mut table = Vec::new();
        let mut strings = vec![0];
        for (name, flags) in symbols {
            table.extend(words(&[u32::try_from(strings.len()).expect("small")]));
            table.extend([N_UNDEFINED_EXTERNAL, 0]);
            table.extend((0x100 | flags).to_le_bytes());
            table.extend([0; 8]);
            strings.extend_from_slice(name.as_bytes());
            strings.push(0);
        }
        let table_at = HEADER_SIZE + commands.iter().map(Vec::len).sum::<usize>() + 24;
        let numbers = [table_at, symbols.len(), table_at + table.len(), strings.len()];
        let mut symtab = words(&[LC_SYMTAB, 24]);
        symtab.extend(words(&numbers.map(|number| u32::try_from(number).expect("small"))));
        commands.push(symtab);
        let body = commands.concat();
        let count = u32::try_from(commands.len()).expect("small");
        let size = u32::try_from(body.len()).expect("small");
        let mut bytes = words(&[0xfeed_facf, 0x0100_000c, 0, 2, count, size, MH_TWOLEVEL, 0]);
        bytes.extend(body);
        bytes.extend(table);
        bytes.extend(strings);
        bytes
    }

    #[test]
    fn the_oldest_macos_is_that_of_the_build_version_command() {
        let binary = Binary::parse(&executable(vec![build_version(1)], &[])).expect("an executable");
        assert_eq!(binary.minimum, Version { major: 13, minor: 2 });
    }

    #[test]
    fn imports_name_their_library_and_whether_they_are_weak() {
        let commands = vec![build_version(1), load_dylib(LC_LOAD_DYLIB, "/usr/lib/libSystem.B.dylib")];
        let bytes = executable(commands, &[("_open", 0), ("_later", N_WEAK_REFERENCE)]);
        let binary = Binary::parse(&bytes).expect("an executable");
        let import = |name: &str, weak| Import {
            library: "/usr/lib/libSystem.B.dylib".into(),
            name: name.into(),
            weak,
        };
        assert_eq!(binary.imports, [import("_later", true), import("_open", false)]);
    }

    #[test]
    fn a_library_that_may_be_missing_is_weak() {
        let commands = vec![build_version(1), load_dylib(LC_LOAD_WEAK_DYLIB.0, "/usr/lib/libnew.dylib")];
        let binary = Binary::parse(&executable(commands, &[])).expect("an executable");
        assert_eq!(binary.libraries, [Library { path: "/usr/lib/libnew.dylib".into(), weak: true }]);
    }

    #[test]
    fn an_executable_for_the_phone_is_refused() {
        let error = Binary::parse(&executable(vec![build_version(2)], &[])).expect_err("not for macOS");
        assert_eq!(error.to_string(), "it is not for macOS");
    }

    #[test]
    fn a_file_that_ends_within_its_load_commands_is_refused() {
        let mut bytes = executable(vec![build_version(1)], &[]);
        bytes.truncate(HEADER_SIZE + 10);
        assert!(Binary::parse(&bytes).is_err());
    }

    #[test]
    fn a_signature_outside_of_the_file_is_refused() {
        let commands = vec![build_version(1), words(&[LC_CODE_SIGNATURE.0, 16, 0xffff_0000, 0x100])];
        let error = Binary::parse(&executable(commands, &[])).expect_err("it lies outside");
        assert!(error.to_string().contains("signature"), "{error}");
    }
}

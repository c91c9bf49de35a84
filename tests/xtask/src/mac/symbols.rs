//! Which symbols of macOS exist since when (`tests/xtask/mac/symbols.txt`), and what a binary imports that is too new. It reads no binary
//! itself.

use super::binary::Binary;
use super::version::Version;
use anyhow::{Context, Result, ensure};
use std::collections::BTreeMap;

/// The symbols of each library and the macOS that brought each.
#[derive(Debug, Default)]
pub struct Table {
    libraries: BTreeMap<String, BTreeMap<String, Version>>,
}

impl Table {
    /// Reads the table: `#` comments, headings `[library version]`, names between them.
    pub fn parse(text: &str) -> Result<Table> {
        let mut table = Table::default();
        let mut heading: Option<(String, Version)> = None;
        for (number, line) in (1..).zip(text.lines()) {
            let line = line.split('#').next().unwrap_or_default().trim();
            if let Some(inside) = line.strip_prefix('[').and_then(|rest| rest.strip_suffix(']')) {
                let (library, version) = inside.rsplit_once(' ').with_context(|| {
                    format!("line {number}: a heading is [library version], not '{line}'")
                })?;
                let since = Version::parse(version).with_context(|| format!("line {number}"))?;
                heading = Some((library.trim().to_owned(), since));
                continue;
            }
            for name in line.split_whitespace() {
                let (library, since) = heading
                    .as_ref()
                    .with_context(|| format!("line {number}: '{name}' stands under no heading"))?;
                let old = table.libraries.entry(library.clone()).or_default().insert(name.to_owned(), *since);
                ensure!(old.is_none(), "line {number}: '{name}' of {library} is there twice");
            }
        }
        Ok(table)
    }

    /// The macOS that brought `symbol` of `library`.
    pub fn since(&self, library: &str, symbol: &str) -> Option<Version> {
        self.libraries.get(library)?.get(symbol).copied()
    }

    /// The symbols of `library` that macOS `version` has.
    #[cfg(test)]
    pub fn available(&self, library: &str, version: Version) -> impl Iterator<Item = &str> {
        let symbols = self.libraries.get(library).into_iter().flatten();
        symbols.filter(move |(_, since)| **since <= version).map(|(name, _)| name.as_str())
    }

    /// Why macOS `minimum` would not start `binary`, a sentence each; nothing if it would.
    pub fn complaints(&self, binary: &Binary, minimum: Version) -> Vec<String> {
        let mut complaints = Vec::new();
        if binary.minimum != minimum {
            complaints.push(format!(
                "it declares macOS {} as its oldest, not {minimum}: MACOSX_DEPLOYMENT_TARGET did not reach the linker",
                binary.minimum
            ));
        }
        for library in binary.libraries.iter().filter(|library| !library.weak) {
            if !self.libraries.contains_key(&library.path) {
                complaints.push(format!(
                    "it needs {}, of which the table of symbols (symbols.txt) says nothing",
                    library.path
                ));
            }
        }
        // A weak import that the system lacks is a null pointer, which its caller looks for.
        for import in binary.imports.iter().filter(|import| !import.weak) {
            match self.since(&import.library, &import.name) {
                Some(since) if since <= minimum => {}
                Some(since) => complaints.push(format!(
                    "it imports {} of {}, which came with macOS {since}: look it up with dlsym",
                    import.name, import.library
                )),
                None => complaints.push(format!(
                    "it imports {} of {}, which the table of symbols (symbols.txt) does not have: add it under the macOS that brought it",
                    import.name, import.library
                )),
            }
        }
        complaints
    }
}

#[cfg(test)]
mod tests {
    use super::super::binary::{Import, Library};
    use super::*;

    const TABLE: &str = "\
# a comment
[/usr/lib/libSystem.B.dylib 11.0]
_open _close
_read
[/F/Hypervisor 11.0]
_hv_vm_create
[/F/Hypervisor 15.0]
_hv_gic_create # newer
";
    const MINIMUM: Version = Version { major: 13, minor: 0 };

    fn importing(symbol: &str, weak: bool) -> Binary {
        let library = if symbol.starts_with("_hv") { "/F/Hypervisor" } else { "/usr/lib/libSystem.B.dylib" };
        Binary {
            minimum: MINIMUM,
            libraries: vec![Library { path: library.into(), weak: false }],
            imports: vec![Import { name: symbol.into(), library: library.into(), weak }],
            signature: None,
        }
    }

    fn complaints(binary: &Binary) -> Vec<String> {
        Table::parse(TABLE).expect("a table").complaints(binary, MINIMUM)
    }

    #[test]
    fn an_import_that_the_oldest_macos_has_is_fine() {
        assert_eq!(complaints(&importing("_close", false)), [""; 0]);
    }

    #[test]
    fn an_import_newer_than_the_oldest_macos_is_named_with_its_version() {
        let found = complaints(&importing("_hv_gic_create", false));
        assert_eq!(
            found,
            ["it imports _hv_gic_create of /F/Hypervisor, which came with macOS 15.0: look it up with dlsym"]
        );
    }

    #[test]
    fn a_weak_import_may_be_newer_than_the_oldest_macos() {
        assert_eq!(complaints(&importing("_hv_gic_create", true)), [""; 0]);
    }

    #[test]
    fn an_import_that_the_table_lacks_is_named() {
        let found = complaints(&importing("_frobnicate", false));
        assert!(matches!(&found[..], [one] if one.contains("_frobnicate")), "{found:?}");
    }

    #[test]
    fn a_library_that_the_table_lacks_is_named() {
        let mut binary = importing("_open", false);
        binary.libraries.push(Library { path: "/usr/lib/libnew.dylib".into(), weak: false });
        let found = complaints(&binary);
        assert!(matches!(&found[..], [one] if one.contains("/usr/lib/libnew.dylib")), "{found:?}");
    }

    #[test]
    fn a_binary_for_another_macos_is_refused() {
        let mut binary = importing("_open", false);
        binary.minimum = Version { major: 15, minor: 0 };
        let found = complaints(&binary);
        assert!(matches!(&found[..], [one] if one.contains("MACOSX_DEPLOYMENT_TARGET")), "{found:?}");
    }

    #[test]
    fn a_symbol_that_is_listed_twice_is_an_error() {
        let text = "[/usr/lib/a 11.0]\n_open\n[/usr/lib/a 12.0]\n_open\n";
        let error = Table::parse(text).expect_err("it is there twice");
        assert!(error.to_string().contains("line 4"), "{error}");
    }

    #[test]
    fn a_symbol_under_no_heading_is_an_error() {
        assert!(Table::parse("_open\n").is_err());
    }
}

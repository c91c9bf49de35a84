//! `cargo xtask cross`: Rust's standard library for a machine that this one is not, and cargo commands that use it. Where rustup can fetch
//! the library, it does; otherwise the library is built from source, from Debian's package of exactly this compiler's version.
//! It knows targets and linkers; what is built for them is for others (`lab.rs`, `mac.rs`).

use crate::apt::{self, Apt};
use crate::{test, workspace};
use anyhow::{Context, Result, bail, ensure};
use hvrun_tests::process::Supervised;
use std::ffi::OsString;
use std::fs;
use std::io::Read;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

/// Linux on arm64, with glibc.
pub const LINUX_ARM64: &str = "aarch64-unknown-linux-gnu";
/// macOS on Apple silicon.
pub const MACOS_ARM64: &str = "aarch64-apple-darwin";

/// The linker for [`LINUX_ARM64`], and the Debian package that has it.
const ARM64_LINKER: (&str, &str) = ("aarch64-linux-gnu-gcc", "gcc-aarch64-linux-gnu");
/// The static C library that it links, and its package.
const ARM64_LIBC: (&str, &str) = ("/usr/aarch64-linux-gnu/lib/libc.a", "libc6-dev-arm64-cross");

/// Debian's package of the standard library's source.
const SOURCE_PACKAGE: &str = "rust-src";
/// Debian suites that may have it, the likely ones first: it comes into unstable and is then built for the releases.
const SOURCE_SUITES: &[&str] =
    &["trixie-backports", "forky-backports", "bookworm-backports", "sid", "testing"];
/// Names the folder `library` of the source to cargo's `-Zbuild-std`, so that the toolchain's own folder stays as it is.
const SOURCE_VAR: &str = "__CARGO_TESTS_ONLY_SRC_ROOT";
/// Set to have the library built from source where the toolchain has it, too: to see that all the chores can.
const FROM_SOURCE_VAR: &str = "HVRUN_STD_FROM_SOURCE";
/// How long rustup may take. Without a network it tries for minutes.
const RUSTUP_LIMIT: Duration = Duration::from_secs(120);

/// Where the standard library for a target comes from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Library {
    /// The toolchain has it.
    Installed,
    /// It is built from this folder, `library` of Rust's source.
    Source(PathBuf),
}

/// `cargo xtask cross`: gets the library for each target and type-checks the CPU seam with it.
pub fn command(args: &[OsString]) -> Result<()> {
    let from_source = match args {
        [] => false,
        [word] if word == "--from-source" => true,
        _ => bail!("cross knows one option: --from-source"),
    };
    for target in [LINUX_ARM64, MACOS_ARM64] {
        let library = if from_source { Library::Source(debian_source()?) } else { library(target)? };
        match &library {
            Library::Installed => println!("{target}: the toolchain has the standard library"),
            Library::Source(path) => {
                println!("{target}: the standard library is built from {}", path.display())
            }
        }
        let mut check = cargo_with(&library, target, "check");
        workspace::run(check.args(["--quiet", "--locked", "--package", "hvrun-arch"]))?;
    }
    Ok(())
}

/// A cargo command `verb` (build, check, clippy, ...) for `target`, whose standard library is made available first.
pub fn cargo(target: &str, verb: &str) -> Result<Command> {
    Ok(cargo_with(&library(target)?, target, verb))
}

fn cargo_with(library: &Library, target: &str, verb: &str) -> Command {
    let mut command = workspace::cargo();
    command.args([verb, "--target", target]);
    if let Library::Source(path) = library {
        command.arg("-Zbuild-std=std,panic_unwind").env("RUSTC_BOOTSTRAP", "1").env(SOURCE_VAR, path);
    }
    command
}

/// A static hvrun for Linux on arm64, built with `profile`; returns the program, without its symbols.
pub fn static_hvrun(profile: &str) -> Result<PathBuf> {
    let mut build = static_cargo("build", profile)?;
    workspace::run(build.args(["--package", "hvrun"]))?;
    stripped(&workspace::target_dir().join(LINUX_ARM64).join(profile).join("hvrun"))
}

/// The static example `example` of `package` for Linux on arm64, without its symbols.
pub fn static_example(package: &str, example: &str, profile: &str) -> Result<PathBuf> {
    let mut build = static_cargo("build", profile)?;
    workspace::run(build.args(["--package", package, "--example", example]))?;
    let examples = workspace::target_dir().join(LINUX_ARM64).join(profile).join("examples");
    stripped(&examples.join(example))
}

/// The static test program `test` of `package` for Linux on arm64, without its symbols.
pub fn static_test(package: &str, test: &str, profile: &str) -> Result<PathBuf> {
    let mut build = static_cargo("test", profile)?;
    build.args([
        "--package",
        package,
        "--test",
        test,
        "--no-run",
        "--message-format=json-render-diagnostics",
    ]);
    let output = build.stderr(Stdio::inherit()).output().context("cannot run cargo")?;
    ensure!(output.status.success(), "'{}' failed ({})", workspace::describe(&build), output.status);
    let messages = String::from_utf8_lossy(&output.stdout);
    stripped(&executable(&messages).context("cargo does not say what it has built")?)
}

/// The program that cargo's messages (JSON, one a line) say was built.
fn executable(messages: &str) -> Option<PathBuf> {
    let (_, rest) = messages.split_once(r#""executable":""#)?;
    rest.split_once('"').map(|(path, _)| PathBuf::from(path))
}

/// A cargo command that links statically for Linux on arm64.
fn static_cargo(verb: &str, profile: &str) -> Result<Command> {
    ensure_arm64_linker()?;
    let mut command = cargo(LINUX_ARM64, verb)?;
    command
        .args(["--quiet", "--locked", "--profile", profile])
        .env("CARGO_TARGET_AARCH64_UNKNOWN_LINUX_GNU_LINKER", ARM64_LINKER.0)
        .env("CARGO_TARGET_AARCH64_UNKNOWN_LINUX_GNU_RUSTFLAGS", "-C target-feature=+crt-static")
        // These would win over the line above.
        .env_remove("RUSTFLAGS")
        .env_remove("CARGO_ENCODED_RUSTFLAGS");
    Ok(command)
}

fn stripped(program: &Path) -> Result<PathBuf> {
    let stripped = program.with_extension("stripped");
    workspace::run(Command::new("aarch64-linux-gnu-strip").arg("-o").arg(&stripped).arg(program))?;
    Ok(stripped)
}

fn ensure_arm64_linker() -> Result<()> {
    test::install_debian_packages(&[ARM64_LINKER, ARM64_LIBC])
}

/// Makes the standard library for `target` available.
pub fn library(target: &str) -> Result<Library> {
    if std::env::var_os(FROM_SOURCE_VAR).is_some() {
        return debian_source().map(Library::Source);
    }
    if is_installed(target)? {
        return Ok(Library::Installed);
    }
    if let Some(source) = cached_source()? {
        return Ok(Library::Source(source));
    }
    match rustup_add(target) {
        Ok(()) if is_installed(target)? => return Ok(Library::Installed),
        Ok(()) => eprintln!("rustup added {target}, but to another toolchain than {}", sysroot()?.display()),
        Err(error) => eprintln!("{error:#}; the standard library will be built from source"),
    }
    debian_source().map(Library::Source)
}

/// What `rustc` prints, run in the checkout, so that the toolchain is the project's.
fn rustc(args: &[&str]) -> Result<String> {
    let output = Command::new("rustc")
        .args(args)
        .current_dir(workspace::root())
        .output()
        .context("cannot run rustc")?;
    ensure!(output.status.success(), "rustc {}: {}", args.join(" "), String::from_utf8_lossy(&output.stderr));
    Ok(String::from_utf8_lossy(&output.stdout).trim().to_owned())
}

fn sysroot() -> Result<PathBuf> {
    Ok(rustc(&["--print", "sysroot"])?.into())
}

/// The compiler's version, such as `1.95.0`.
fn release() -> Result<String> {
    let text = rustc(&["--version", "--verbose"])?;
    let release = text.lines().find_map(|line| line.strip_prefix("release: "));
    release.map(str::to_owned).context("rustc does not say its release")
}

fn is_installed(target: &str) -> Result<bool> {
    let dir = PathBuf::from(rustc(&["--print", "target-libdir", "--target", target])?);
    let Ok(entries) = fs::read_dir(dir) else { return Ok(false) };
    Ok(entries.flatten().any(|entry| entry.file_name().to_string_lossy().starts_with("libstd-")))
}

fn rustup_add(target: &str) -> Result<()> {
    ensure!(workspace::has_tool("rustup"), "rustup is not installed here");
    eprintln!("fetching the standard library for {target}");
    let mut command = Command::new("rustup");
    command.args(["target", "add", target]).current_dir(workspace::root());
    command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::piped());
    let (process, mut child) = Supervised::spawn(&mut command, RUSTUP_LIMIT)?;
    let mut said = String::new();
    child.stderr.take().context("no stderr")?.read_to_string(&mut said)?;
    let ended = process.wait()?;
    ensure!(!ended.timed_out, "rustup target add {target} took more than {RUSTUP_LIMIT:?}");
    ensure!(ended.status.success(), "rustup target add {target} failed: {}", said.trim());
    Ok(())
}

fn source_dir() -> Result<PathBuf> {
    Ok(workspace::root().join("target/cross").join(format!("rust-src-{}", release()?)))
}

/// The source fetched earlier, if it is all there.
fn cached_source() -> Result<Option<PathBuf>> {
    let library = source_dir()?.join("library");
    Ok(library.join("std/Cargo.toml").is_file().then_some(library))
}

/// The source of exactly this compiler's standard library from one of Debian's suites. Uses the network only the first time.
fn debian_source() -> Result<PathBuf> {
    if let Some(source) = cached_source()? {
        return Ok(source);
    }
    let release = release()?;
    let archive = debian_archive(&machine_sources()).with_context(|| no_source(&release))?;
    let dir = workspace::root().join("target/cross/apt");
    let mut seen = Vec::new();
    for suite in SOURCE_SUITES {
        // A mirror need not have every suite.
        let apt = match Apt::prepare_with(&dir, "amd64", &archive.stanza(suite)) {
            Ok(apt) => apt,
            Err(error) => {
                seen.push(format!("{suite}: {error:#}"));
                continue;
            }
        };
        let versions = apt.versions(SOURCE_PACKAGE)?;
        match versions.iter().find(|version| is_release(version, &release)) {
            Some(version) => return unpack_source(&apt, version, &release),
            None => seen.push(format!("{suite}: {}", versions.join(", "))),
        }
    }
    bail!("{} ({})", no_source(&release), seen.join("; "))
}

fn no_source(release: &str) -> String {
    format!(
        "the source of Rust {release}'s standard library is in none of Debian's suites that were tried; 'rustup target add' or \
         'rustup component add rust-src' where it works are the other ways"
    )
}

/// Whether a Debian version such as `1.95.0+dfsg1-2~bpo13+1` is of the upstream `release`.
fn is_release(version: &str, release: &str) -> bool {
    version.strip_prefix(release).is_some_and(|rest| rest.starts_with(['+', '-', '~']))
}

fn unpack_source(apt: &Apt, version: &str, release: &str) -> Result<PathBuf> {
    let deb = apt.download(&format!("{SOURCE_PACKAGE}={version}"))?;
    let to = source_dir()?;
    let part = to.with_extension("part");
    remove_dir_if_there(&part)?;
    apt::unpack(&deb, &part)?;
    let source = part.join(format!("usr/src/rustc-{release}"));
    let found = fs::read_to_string(source.join("src/version"))
        .with_context(|| format!("{} is not laid out as expected", deb.display()))?;
    ensure!(found.trim() == release, "{} is the source of {found}, not of {release}", deb.display());
    remove_dir_if_there(&to)?;
    fs::rename(&source, &to).with_context(|| format!("cannot write {}", to.display()))?;
    remove_dir_if_there(&part)?;
    Ok(to.join("library"))
}

fn remove_dir_if_there(path: &Path) -> Result<()> {
    match fs::remove_dir_all(path) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
            Err(error).with_context(|| format!("cannot remove {}", path.display()))
        }
        _ => Ok(()),
    }
}

/// A place that has Debian's suites.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Archive {
    uri: String,
    signed_by: Option<String>,
}

impl Archive {
    fn stanza(&self, suite: &str) -> String {
        let signed_by = self.signed_by.as_ref().map(|key| format!("Signed-By: {key}\n")).unwrap_or_default();
        format!("Types: deb\nURIs: {}\nSuites: {suite}\nComponents: main\n{signed_by}", self.uri)
    }
}

/// The text of the machine's apt sources: one-line files and deb822 files, in this order.
fn machine_sources() -> Vec<String> {
    let mut paths = vec![PathBuf::from("/etc/apt/sources.list")];
    let parts = fs::read_dir("/etc/apt/sources.list.d").into_iter().flatten().flatten();
    paths.extend(parts.map(|entry| entry.path()));
    paths.sort();
    let texts = paths
        .iter()
        .filter(|path| path.extension().is_some_and(|name| name == "list" || name == "sources"))
        .filter_map(|path| fs::read_to_string(path).ok());
    texts.collect()
}

/// The first of the sources that is a mirror of Debian itself: its address ends in `/debian`.
fn debian_archive(sources: &[String]) -> Result<Archive> {
    let found = sources.iter().flat_map(|text| text.split("\n\n")).find_map(|paragraph| {
        let lines = || paragraph.lines().map(str::trim).filter(|line| !line.starts_with('#'));
        let is_debian = |uri: &&str| uri.contains("://") && uri.trim_end_matches('/').ends_with("/debian");
        let one_line = lines().filter(|line| line.starts_with("deb ")).find_map(|line| {
            let uri = line.split_whitespace().find(is_debian)?;
            let signed_by = line.split(['[', ']', ' ']).find_map(|word| word.strip_prefix("signed-by="));
            Some(Archive { uri: uri.to_owned(), signed_by: signed_by.map(str::to_owned) })
        });
        one_line.or_else(|| {
            let field = |name: &str| lines().find_map(|line| line.strip_prefix(name)).map(str::trim);
            let uri = field("URIs:")?.split_whitespace().find(is_debian)?;
            // A key that is written out in the file goes over several lines; apt's trusted keys have to do then.
            let signed_by = field("Signed-By:").filter(|key| key.starts_with('/'));
            Some(Archive { uri: uri.to_owned(), signed_by: signed_by.map(str::to_owned) })
        })
    });
    found.context("none of the machine's apt sources is a mirror of Debian")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn debian_version_of_another_release_is_not_taken() {
        assert!(is_release("1.95.0+dfsg1-2~bpo13+1", "1.95.0"));
        assert!(!is_release("1.95.01+dfsg1-2", "1.95.0"));
        assert!(!is_release("1.94.1+dfsg1-1", "1.95.0"));
    }

    #[test]
    fn built_program_is_found_among_the_messages_of_libraries() {
        let messages = concat!(
            r#"{"reason":"compiler-artifact","executable":null}"#,
            "\n",
            r#"{"reason":"compiler-artifact","executable":"/t/deps/kvm-12","fresh":false}"#
        );
        assert_eq!(executable(messages), Some(PathBuf::from("/t/deps/kvm-12")));
    }

    #[test]
    fn deb822_sources_give_address_and_key() {
        let text = "Types: deb\n# a note\nURIs: http://mirror.example/debian\nSuites: bookworm\nSigned-By: /usr/share/keyrings/a.gpg\n";
        let archive = debian_archive(&[text.to_owned()]).unwrap();
        assert_eq!(archive.stanza("sid").lines().nth(1), Some("URIs: http://mirror.example/debian"));
        assert_eq!(archive.signed_by.as_deref(), Some("/usr/share/keyrings/a.gpg"));
    }

    #[test]
    fn one_line_sources_give_address_and_key() {
        let text = "deb [signed-by=/k.gpg] https://mirror.example/debian/ bookworm main\n";
        let archive = debian_archive(&[text.to_owned()]).unwrap();
        assert_eq!(archive.uri, "https://mirror.example/debian/");
        assert_eq!(archive.signed_by.as_deref(), Some("/k.gpg"));
    }

    #[test]
    fn sources_of_others_and_of_security_updates_are_passed_over() {
        let texts = [
            "deb https://packages.example/apt sdk main\n".to_owned(),
            "URIs: http://mirror.example/debian-security\n\nURIs: http://mirror.example/debian\n".to_owned(),
        ];
        assert_eq!(debian_archive(&texts).unwrap().uri, "http://mirror.example/debian");
    }
}

//! The Nix expressions: they parse, and evaluate with a stub of nixpkgs (`nix/tests`), without a network, a daemon or a store of the host.
//! Nothing is built; the scripts of the package run on the hvrun under test.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use anyhow::{Context, Result, ensure};
use hvrun_tests::artifacts;
use serde_json::{Value, json};
use tempfile::TempDir;

const SYSTEMS: [&str; 3] = ["aarch64-darwin", "aarch64-linux", "x86_64-linux"];
const NAMES: [&str; 4] = ["qemu-system-aarch64", "qemu-system-x86_64", "qemu-kvm", "qemu-img"];
const PAGE: &str = "docs/nixos-tests-on-macos.md";

/// The top of the repository.
fn top() -> Result<PathBuf> {
    Ok(Path::new(env!("CARGO_MANIFEST_DIR")).parent().context("no parent")?.to_owned())
}

/// nix-instantiate with a store of its own.
struct Nix {
    dir: TempDir,
}

impl Nix {
    fn new() -> Result<Nix> {
        Ok(Nix { dir: tempfile::tempdir()? })
    }

    fn run(&self, args: &[&str]) -> Result<Output> {
        self.program("nix-instantiate", args)
    }

    fn program(&self, program: &str, args: &[&str]) -> Result<Output> {
        let mut command = Command::new(program);
        command.args(args).current_dir(top()?).env("HOME", self.dir.path());
        for (name, folder) in [
            ("NIX_STORE_DIR", "store"),
            ("NIX_STATE_DIR", "state"),
            ("NIX_LOG_DIR", "log"),
            ("NIX_CONF_DIR", "conf"),
        ] {
            command.env(name, self.dir.path().join(folder));
        }
        let config = "build-users-group =\nexperimental-features = nix-command flakes";
        command.env("NIX_CONFIG", config).env_remove("NIX_REMOTE").env_remove("NIX_PATH");
        command.output().with_context(|| format!("cannot run {program} (Debian's nix-bin)"))
    }

    fn parse(&self, file: &Path) -> Result<()> {
        let output = self.run(&["--parse", file.to_str().context("not UTF-8")?])?;
        ensure!(output.status.success(), "{}: {}", file.display(), String::from_utf8_lossy(&output.stderr));
        Ok(())
    }

    fn evaluate(&self, expression: &str) -> Result<Output> {
        self.run(&["--eval", "--strict", "--json", "-E", expression])
    }

    /// An expression's value, with `outputs` (of our flake), `nixpkgs` (the stub) and `package` (ours, for a system) in reach.
    fn value(&self, expression: &str) -> Result<Value> {
        let output = self.evaluate(&format!(
            "let inherit (import ./nix/tests/outputs.nix) nixpkgs hvrun; package = system: removeAttrs hvrun.packages.${{system}}.hvrun [ \"stdenv\" ]; in {expression}"
        ))?;
        ensure!(output.status.success(), "{expression}: {}", String::from_utf8_lossy(&output.stderr));
        Ok(serde_json::from_slice(&output.stdout)?)
    }

    fn package(&self, system: &str) -> Result<Value> {
        self.value(&format!("package \"{system}\""))
    }

    /// The message with which an expression fails.
    fn error(&self, expression: &str) -> Result<String> {
        let output = self.evaluate(expression)?;
        ensure!(!output.status.success(), "{expression} has a value");
        Ok(String::from_utf8(output.stderr)?)
    }
}

/// The Nix in a page of documentation.
fn blocks(page: &str) -> Result<Vec<String>> {
    let text = fs::read_to_string(top()?.join(page))?;
    let mut blocks = Vec::new();
    let mut inside = false;
    for line in text.lines() {
        match line.trim() {
            "```nix" => {
                inside = true;
                blocks.push(String::new());
            }
            "```" => inside = false,
            _ if inside => {
                if let Some(block) = blocks.last_mut() {
                    *block += line;
                    *block += "\n";
                }
            }
            _ => {}
        }
    }
    Ok(blocks)
}

/// Runs a script of the package as nixpkgs' builder would, with `out` and `path` before the `PATH`.
fn build_step(script: &Value, out: &Path, path: &Path) -> Result<String> {
    let script = format!("set -euo pipefail; runHook() {{ :; }}; {}", script.as_str().context("no script")?);
    let paths = format!("{}:{}", path.display(), std::env::var("PATH")?);
    let output = Command::new("bash").args(["-c", &script]).env("out", out).env("PATH", paths).output()?;
    ensure!(output.status.success(), "{script}: {}", String::from_utf8_lossy(&output.stderr));
    Ok(String::from_utf8(output.stdout)?)
}

/// A folder as the package is after its installation: hvrun and its names.
fn installed(package: &Value) -> Result<TempDir> {
    let out = tempfile::tempdir()?;
    let bin = out.path().join("bin");
    fs::create_dir(&bin)?;
    fs::copy(artifacts::hvrun()?, bin.join("hvrun"))?;
    build_step(&package["postInstall"], out.path(), &bin)?;
    Ok(out)
}

#[test]
fn every_expression_parses() -> Result<()> {
    let nix = Nix::new()?;
    let mut files = vec![top()?.join("flake.nix")];
    for folder in ["nix", "nix/tests", "nix/tests/nixpkgs"] {
        for entry in fs::read_dir(top()?.join(folder))? {
            files.push(entry?.path());
        }
    }
    files.retain(|file| file.extension().is_some_and(|extension| extension == "nix"));
    ensure!(files.len() >= 6, "{files:?}");
    files.iter().try_for_each(|file| nix.parse(file))
}

#[test]
fn every_example_of_the_page_parses() -> Result<()> {
    let (nix, dir) = (Nix::new()?, tempfile::tempdir()?);
    let blocks = blocks(PAGE)?;
    ensure!(blocks.len() >= 3, "{blocks:?}");
    for (number, block) in blocks.iter().enumerate() {
        let file = dir.path().join(format!("{number}.nix"));
        fs::write(&file, block)?;
        nix.parse(&file)?;
    }
    Ok(())
}

#[test]
fn the_pages_flake_is_a_test_of_two_nodes_on_hvrun() -> Result<()> {
    let nix = Nix::new()?;
    let flake = blocks(PAGE)?.remove(0);
    let test = nix.value(&format!(
        "let test = (({flake}).outputs {{ self = {{ }}; inherit nixpkgs hvrun; }}).checks.aarch64-darwin.hello; in
         {{ nodes = builtins.attrNames test.nodes; qemu = map (config: config.qemu.package.content.pname) test.configs; }}"
    ))?;
    assert_eq!(test, json!({"nodes": ["client", "server"], "qemu": ["hvrun"]}));
    Ok(())
}

#[test]
fn nix_itself_takes_both_flakes() -> Result<()> {
    let (nix, dir) = (Nix::new()?, tempfile::tempdir()?);
    let (hvrun, users) = (dir.path().join("hvrun"), dir.path().join("users"));
    fs::create_dir(&hvrun)?;
    fs::create_dir(&users)?;
    // Without what a build leaves behind.
    let copied = Command::new("cp")
        .args(["-R", "flake.nix", "nix", "Cargo.toml", "Cargo.lock", "entitlements.plist"])
        .arg(&hvrun)
        .current_dir(top()?)
        .status()?;
    ensure!(copied.success(), "cannot copy the flake");
    let stub = format!("path:{}/nix/tests/nixpkgs", hvrun.display());
    let page = blocks(PAGE)?.remove(0);
    let page = page
        .replace("git+file:///path/to/hvrun", &format!("path:{}", hvrun.display()))
        .replace("github:NixOS/nixpkgs/nixos-unstable", &stub);
    fs::write(users.join("flake.nix"), page)?;
    let attribute = format!("path:{}#checks.aarch64-darwin.hello.nodes", users.display());
    let inputs = ["--override-input", "hvrun/nixpkgs", &stub, "--no-write-lock-file"];
    let output = nix.program(
        "nix",
        &[&["eval", "--offline", "--json"], &inputs[..], &[&attribute, "--apply", "builtins.attrNames"]]
            .concat(),
    )?;
    ensure!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    assert_eq!(serde_json::from_slice::<Value>(&output.stdout)?, json!(["client", "server"]));
    Ok(())
}

#[test]
fn the_package_is_hvrun_alone_for_three_systems() -> Result<()> {
    let nix = Nix::new()?;
    let systems = nix.value("builtins.attrNames hvrun.packages")?;
    assert_eq!(systems, json!(SYSTEMS));
    for system in SYSTEMS {
        let package = nix.package(system)?;
        assert_eq!(package["meta"]["platforms"], json!(SYSTEMS), "{system}");
        assert_eq!(package["meta"]["mainProgram"], "hvrun", "{system}");
        assert_eq!(package["version"], env!("CARGO_PKG_VERSION"), "{system}");
        assert_eq!(package["cargoBuildFlags"], json!(["--package=hvrun"]), "{system}");
        let stdenv = nix.value(&format!("hvrun.packages.{system}.default.stdenv.hostPlatform.system"))?;
        assert_eq!(stdenv, system);
    }
    Ok(())
}

#[test]
fn the_source_that_the_package_takes_is_a_whole_workspace() -> Result<()> {
    let package = Nix::new()?.package("x86_64-linux")?;
    let copy = tempfile::tempdir()?;
    for path in package["src"].as_array().context("no list")? {
        let path = path.as_str().context("no path")?;
        let status = Command::new("cp").args(["-R", path]).arg(copy.path()).status()?;
        ensure!(status.success(), "cannot copy {path}");
    }
    let output = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()))
        .args(["metadata", "--no-deps", "--offline", "--locked", "--format-version=1"])
        .current_dir(copy.path())
        .output()?;
    ensure!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let metadata: Value = serde_json::from_slice(&output.stdout)?;
    let packages = metadata["packages"].as_array().context("no packages")?;
    ensure!(packages.iter().any(|package| package["name"] == "hvrun"), "{metadata}");
    Ok(())
}

#[test]
fn the_package_has_a_link_for_each_of_qemus_names_and_checks_what_they_say() -> Result<()> {
    let package = Nix::new()?.package("aarch64-linux")?;
    let out = installed(&package)?;
    let bin = out.path().join("bin");
    for name in NAMES {
        assert_eq!(fs::read_link(bin.join(name))?, Path::new("hvrun"), "{name}");
    }
    assert_eq!(package["doInstallCheck"], true);
    let said = build_step(&package["installCheckPhase"], out.path(), &bin)?;
    assert_eq!(said.lines().count(), 4, "{said}");
    Ok(())
}

#[test]
fn the_package_is_signed_with_the_entitlement_on_macs_alone() -> Result<()> {
    let nix = Nix::new()?;
    let mac = nix.package("aarch64-darwin")?;
    assert_eq!(mac["nativeBuildInputs"], json!(["sigtool"]));
    let out = installed(&mac)?;
    // In the place of the codesign that nixpkgs has.
    let tools = tempfile::tempdir()?;
    let codesign = tools.path().join("codesign");
    fs::write(&codesign, "#!/bin/sh\nprintf '%s\\n' \"$@\"\n")?;
    fs::set_permissions(&codesign, std::os::unix::fs::PermissionsExt::from_mode(0o755))?;
    let said = build_step(&mac["postFixup"], out.path(), tools.path())?;
    let words: Vec<&str> = said.lines().collect();
    let program = out.path().join("bin/hvrun");
    ensure!(words[1].ends_with("entitlements.plist"), "{said}");
    assert_eq!(
        (words[0], &words[2..]),
        ("--entitlements", &["-f", "-s", "-", program.to_str().context("UTF-8")?][..])
    );
    for system in ["aarch64-linux", "x86_64-linux"] {
        let package = nix.package(system)?;
        assert_eq!(
            (&package["nativeBuildInputs"], &package["postFixup"]),
            (&json!([]), &json!("")),
            "{system}"
        );
    }
    Ok(())
}

#[test]
fn the_overlay_adds_hvrun_and_nothing_else() -> Result<()> {
    let nix = Nix::new()?;
    let added = nix.value(
        "let added = hvrun.overlays.default nixpkgs.legacyPackages.x86_64-linux { }; in
         { names = builtins.attrNames added; inherit (added.hvrun) pname; }",
    )?;
    assert_eq!(added, json!({"names": ["hvrun"], "pname": "hvrun"}));
    Ok(())
}

#[test]
fn the_modules_set_the_package_of_the_host() -> Result<()> {
    let nix = Nix::new()?;
    let set = nix.value(
        "let
           inherit (nixpkgs) lib;
           pkgs = nixpkgs.legacyPackages.aarch64-darwin;
           system = package: package.content.stdenv.hostPlatform.system;
         in {
           vm = system (hvrun.nixosModules.default { inherit lib; config.virtualisation.host.pkgs = pkgs; }).virtualisation.qemu.package;
           test = system (hvrun.lib.testModule { inherit lib; config.hostPkgs = pkgs; }).qemu.package;
           alone = system ((import ./nix/modules.nix { }).test { inherit lib; config.hostPkgs = pkgs; }).qemu.package;
         }",
    )?;
    assert_eq!(set, json!({"vm": "aarch64-darwin", "test": "aarch64-darwin", "alone": "aarch64-darwin"}));
    Ok(())
}

#[test]
fn a_host_without_a_package_is_told_which_there_are() -> Result<()> {
    let said = Nix::new()?.error(
        "let inherit (import ./nix/tests/outputs.nix) nixpkgs hvrun; in
         (hvrun.lib.testModule {
           inherit (nixpkgs) lib;
           config.hostPkgs = import ./nix/tests/nixpkgs { system = \"x86_64-darwin\"; };
         }).qemu.package.content.pname",
    )?;
    ensure!(said.contains("hvrun is not there for x86_64-darwin; it is for aarch64-darwin"), "{said}");
    Ok(())
}

#[test]
fn packages_with_too_old_a_rust_are_answered_with_what_would_work() -> Result<()> {
    let said = Nix::new()?.error(
        "((import ./nix/tests/nixpkgs { system = \"x86_64-linux\"; rustVersion = \"1.86.0\"; }).callPackage ./nix/package.nix { }).pname",
    )?;
    let minimum = env!("CARGO_PKG_RUST_VERSION");
    ensure!(
        said.contains(&format!("needs Rust {minimum} or newer, and these packages have Rust 1.86.0")),
        "{said}"
    );
    ensure!(said.contains("hvrun's flake"), "{said}");
    Ok(())
}

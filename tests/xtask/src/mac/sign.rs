//! The signature of the binary: an ad-hoc one, with the entitlement without which Hypervisor.framework refuses.

use super::binary::Binary;
use crate::workspace;
use anyhow::{Context, Result, ensure};
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

/// What the binary asks to be allowed, at the top of the repository.
const ENTITLEMENTS: &str = "entitlements.plist";

/// Without it, `hv_vm_create` answers HV_DENIED.
const HYPERVISOR: &[u8] = b"com.apple.security.hypervisor";

/// Signs a copy of the binary beside it and returns the copy; where no program can sign, says so and returns the binary itself.
pub fn sign(binary: &Path) -> Result<PathBuf> {
    let entitlements = workspace::root().join(ENTITLEMENTS);
    // cargo links the file that it made to its own copy, so signing in place would change that too.
    let signed = binary.with_file_name("hvrun-signed");
    fs::copy(binary, &signed).with_context(|| format!("cannot write {}", signed.display()))?;
    let mut command = if workspace::has_tool("codesign") {
        let mut command = Command::new("codesign");
        command.args(["--force", "--sign", "-", "--entitlements"]).arg(entitlements).arg(&signed);
        command
    } else if workspace::has_tool("rcodesign") {
        let mut command = Command::new("rcodesign");
        command.arg("sign").arg("--entitlements-xml-file").arg(entitlements).arg(&signed);
        command
    } else {
        fs::remove_file(&signed)?;
        println!(
            "    not signed: neither codesign nor rcodesign is here. 'cargo install apple-codesign --no-default-features' brings the \
             second; on a Mac: codesign --force --sign - --entitlements {ENTITLEMENTS} {}",
            binary.display()
        );
        return Ok(binary.to_owned());
    };
    println!("    {}", workspace::describe(&command));
    let output = command.output().with_context(|| format!("cannot run {}", workspace::describe(&command)))?;
    ensure!(
        output.status.success(),
        "'{}' failed ({}):\n{}",
        workspace::describe(&command),
        output.status,
        String::from_utf8_lossy(&output.stderr)
    );
    ensure!(is_entitled(&fs::read(&signed)?)?, "{} was signed without the entitlement", signed.display());
    Ok(signed)
}

/// Whether the signature has the hypervisor's entitlement in it.
fn is_entitled(bytes: &[u8]) -> Result<bool> {
    let signature = Binary::parse(bytes)?.signature.unwrap_or_default();
    Ok(signature.windows(HYPERVISOR.len()).any(|window| window == HYPERVISOR))
}

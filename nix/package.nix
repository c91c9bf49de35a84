# hvrun as a package: one binary, under its own name and QEMU's. `pkgs.callPackage` fills in the arguments.
# It builds the command alone; the tests of the repository boot guests, which a build has not.
{
  lib,
  stdenv,
  rustPlatform,
  rustc,
  darwin,
}:

let
  workspace = (lib.importTOML ../Cargo.toml).workspace.package;
  inherit (workspace) version rust-version;
  # What a NixOS test and its run scripts call, and what says clearly that it is not there yet.
  names = [
    "qemu-system-aarch64"
    "qemu-system-x86_64"
    "qemu-kvm"
    "qemu-img"
  ];
in

lib.throwIf (lib.versionOlder rustc.version rust-version) ''
  hvrun ${version} needs Rust ${rust-version} or newer, and these packages have Rust ${rustc.version}.
  Take the package of hvrun's flake instead, which brings its own: it works with tests of any nixpkgs.
'' rustPlatform.buildRustPackage
  {
    pname = "hvrun";
    inherit version;

    # The workspace and no more. Without .cargo, whose settings for macOS are those of a build without Nix.
    src = lib.fileset.toSource {
      root = ../.;
      fileset = lib.fileset.unions [
        ../Cargo.lock
        ../Cargo.toml
        ../arch
        ../boot
        ../cli
        ../devices
        ../tests
        ../vmm
      ];
    };
    cargoLock.lockFile = ../Cargo.lock;
    cargoBuildFlags = [ "--package=hvrun" ];

    nativeBuildInputs = lib.optionals stdenv.hostPlatform.isDarwin [ darwin.sigtool ];

    doCheck = false;

    postInstall = ''
      for name in ${toString names}; do
        ln -s hvrun "$out/bin/$name"
      done
    '';

    # Hypervisor.framework refuses a program without the entitlement. Here, because the fixup before it strips, and that would spoil the
    # signature.
    postFixup = lib.optionalString stdenv.hostPlatform.isDarwin ''
      codesign --entitlements ${../entitlements.plist} -f -s - "$out/bin/hvrun"
    '';

    doInstallCheck = stdenv.buildPlatform.canExecute stdenv.hostPlatform;
    installCheckPhase = ''
      runHook preInstallCheck
      "$out/bin/hvrun" --version | grep -F "hvrun ${version}"
      "$out/bin/qemu-system-aarch64" -version | grep -F "(hvrun ${version})"
      "$out/bin/qemu-img" --version | grep -F "(hvrun ${version})"
      "$out/bin/qemu-system-aarch64" -machine virt,accel=hvf:kvm:tcg -kernel Image -print-config | grep -F '"kernel": "Image"'
      runHook postInstallCheck
    '';

    meta = {
      description = "Virtual machine monitor for arm64 guests that stands in for QEMU under NixOS tests";
      license = lib.licenses.asl20;
      platforms = [
        "aarch64-darwin"
        "aarch64-linux"
        "x86_64-linux"
      ];
      mainProgram = "hvrun";
    };
  }

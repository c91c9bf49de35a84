{
  description = "A virtual machine monitor for arm64 guests that stands in for QEMU under NixOS tests";

  inputs.nixpkgs.url = "github:NixOS/nixpkgs/nixpkgs-unstable";

  outputs =
    { self, nixpkgs }:
    let
      systems = [
        "aarch64-darwin"
        "aarch64-linux"
        "x86_64-linux"
      ];
      # This flake's own package, whatever nixpkgs the host has: an old one may have too old a Rust.
      packageFor =
        pkgs:
        let
          inherit (pkgs.stdenv.hostPlatform) system;
        in
        (self.packages.${system} or (throw "hvrun is not there for ${system}; it is for ${toString systems}")).hvrun;
      modules = import ./nix/modules.nix { inherit packageFor; };
    in
    {
      packages = nixpkgs.lib.genAttrs systems (system: rec {
        hvrun = nixpkgs.legacyPackages.${system}.callPackage ./nix/package.nix { };
        default = hvrun;
      });

      overlays.default = import ./nix/overlay.nix;

      # For `system.build.vm` and `darwin.linux-builder`.
      nixosModules.default = modules.vm;

      # For `testers.runNixOSTest` and `nixos.lib.runTest`, which have modules of their own kind.
      lib.testModule = modules.test;
    };
}

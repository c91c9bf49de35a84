# hvrun's flake with the stub of nixpkgs as its input: what `nix flake show` would show, to be looked into.
let
  nixpkgs = {
    inherit (import ./nixpkgs.nix { system = "none"; }) lib;
    legacyPackages = nixpkgs.lib.genAttrs [ "aarch64-darwin" "aarch64-linux" "x86_64-linux" ] (
      system: import ./nixpkgs.nix { inherit system; }
    );
  };
  hvrun = (import ../../flake.nix).outputs {
    self = hvrun;
    inherit nixpkgs;
  };
in
{
  inherit nixpkgs hvrun;
}

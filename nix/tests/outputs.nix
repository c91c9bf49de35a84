# hvrun's flake with the stub of nixpkgs as its input: what `nix flake show` would show, to be looked into.
let
  nixpkgs = (import ./nixpkgs/flake.nix).outputs { };
  hvrun = (import ../../flake.nix).outputs {
    self = hvrun;
    inherit nixpkgs;
  };
in
{
  inherit nixpkgs hvrun;
}

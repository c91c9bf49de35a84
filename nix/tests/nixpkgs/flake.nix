# The stub as a flake, in the place of nixpkgs'.
{
  outputs =
    { ... }:
    let
      inherit (import ./. { system = "none"; }) lib;
    in
    {
      inherit lib;
      legacyPackages = lib.genAttrs [ "aarch64-darwin" "aarch64-linux" "x86_64-linux" ] (
        system: import ./. { inherit system; }
      );
    };
}

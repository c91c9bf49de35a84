# An overlay for nixpkgs: adds `hvrun`, built with those packages. It leaves `qemu` alone, whose guest agent runs in guests.
final: _prev: {
  hvrun = final.callPackage ./package.nix { };
}

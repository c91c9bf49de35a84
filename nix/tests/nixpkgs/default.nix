# As much of nixpkgs as hvrun's expressions ask for, so that they can be evaluated where there is none: for a host's system and the version
# of its Rust. It builds nothing, and what it does not have is an error.
{
  system,
  rustVersion ? "1.99.0",
}:

let
  isDarwin = builtins.match ".*-darwin" system != null;

  lib = {
    importTOML = path: builtins.fromTOML (builtins.readFile path);
    throwIf = condition: message: if condition then throw message else (value: value);
    versionOlder = one: other: builtins.compareVersions one other < 0;
    optionals = condition: list: if condition then list else [ ];
    optionalString = condition: string: if condition then string else "";
    genAttrs =
      names: value:
      builtins.listToAttrs (
        map (name: {
          inherit name;
          value = value name;
        }) names
      );
    mkForce = content: {
      priority = 50;
      inherit content;
    };
    licenses.asl20 = "asl20";
    fileset = {
      unions = files: files;
      toSource = { root, fileset }: { inherit root fileset; };
    };
  };

  stdenv = {
    hostPlatform = {
      inherit system isDarwin;
    };
    buildPlatform.canExecute = platform: platform.system == system;
  };

  # What a derivation would be made from, and the attribute by which run scripts find out about the host.
  mkDerivation =
    arguments:
    arguments
    // {
      inherit stdenv;
      src = map toString arguments.src.fileset;
      cargoLock = toString arguments.cargoLock.lockFile;
    };

  pkgs = {
    inherit lib stdenv;
    rustPlatform.buildRustPackage = mkDerivation;
    rustc.version = rustVersion;
    darwin = if isDarwin then { sigtool = "sigtool"; } else throw "${system} asks for a package of macOS";
    callPackage =
      file: overrides:
      let
        function = import file;
      in
      function (builtins.intersectAttrs (builtins.functionArgs function) pkgs // overrides);
    testers.runNixOSTest = test: {
      inherit (test) name nodes testScript;
      configs = map (
        module:
        module {
          inherit lib;
          config.hostPkgs = pkgs;
        }
      ) test.imports;
    };
  };
in
pkgs

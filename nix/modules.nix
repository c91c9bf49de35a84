# Modules that put hvrun in QEMU's place. `packageFor` gives the package for a set of packages of the host.
{
  packageFor ? pkgs: pkgs.callPackage ./package.nix { },
}:

{
  # For a test (`testers.runNixOSTest`, `nixos.lib.runTest`): all its nodes, the tools that its script calls, and the interactive driver.
  # With force, because the interactive driver has a choice of its own.
  test =
    { config, lib, ... }:
    {
      qemu.package = lib.mkForce (packageFor config.hostPkgs);
    };

  # For the configuration of one virtual machine: `system.build.vm` and `darwin.linux-builder`.
  vm =
    { config, lib, ... }:
    {
      virtualisation.qemu.package = lib.mkForce (packageFor config.virtualisation.host.pkgs);
    };
}

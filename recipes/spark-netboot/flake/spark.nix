# What the machine needs: GB10, aarch64, UEFI.
{ lib, pkgs, ... }:
{
  nixpkgs.hostPlatform = "aarch64-linux";

  # GB10 is new hardware.
  boot.kernelPackages = lib.mkDefault pkgs.linuxPackages_latest;

  boot.kernelParams = [
    "console=tty0"
    # The last one is /dev/console: where stage 1 and panics are seen.
    "console=ttyS0,921600"
    "earlycon=uart,mmio32,0x16A00000"
    "pci=pcie_bus_safe"
  ];

  # The GPU is NVIDIA's driver's.
  boot.blacklistedKernelModules = [ "nouveau" ];

  boot.initrd.availableKernelModules = [
    "nvme"
    "xhci_pci"
    "usbhid"
  ];

  # For `doit boot`, which has QEMU's devices.
  boot.initrd.kernelModules = [ "virtio_pci" ];

  hardware.enableRedistributableFirmware = true;
}

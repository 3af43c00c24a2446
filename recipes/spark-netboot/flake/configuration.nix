# What runs on it. Whatever a machine writes is gone when it is switched off.
{
  lib,
  pkgs,
  ...
}:
let
  keys = builtins.filter (lib.hasSuffix ".pub") (
    map toString (lib.filesystem.listFilesRecursive ./keys)
  );
in
{
  system.stateVersion = "26.05";

  networking.hostName = ""; # DHCP's
  networking.useDHCP = true;
  systemd.network.wait-online.anyInterface = true;

  # Whoever has a key of keys/ is root; nobody logs in by password, at the console neither.
  services.openssh = {
    enable = true;
    settings = {
      PasswordAuthentication = false;
      KbdInteractiveAuthentication = false;
      PermitRootLogin = "prohibit-password";
    };
  };
  users.mutableUsers = false;
  users.users.root = {
    hashedPassword = "!";
    openssh.authorizedKeys.keys = map (file: lib.removeSuffix "\n" (builtins.readFile file)) keys;
  };
  # It may be meant that nobody gets in.
  users.allowNoPasswordLogin = true;
  warnings = lib.optional (keys == [ ]) "flake/keys/ holds no public key (*.pub): nobody can log in";

  environment.systemPackages = with pkgs; [
    dmidecode
    ethtool
    htop
    iperf3
    lshw
    nvme-cli
    pciutils
    tcpdump
    usbutils
  ];

  # A small image: it is loaded whole, by every machine at every boot.
  documentation.enable = false;
  nix.channel.enable = false;
}

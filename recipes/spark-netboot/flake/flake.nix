{
  description = "NixOS netboot image for the DGX Spark";

  inputs.nixpkgs.url = "github:NixOS/nixpkgs/nixos-26.05";

  outputs =
    { nixpkgs, ... }:
    {
      nixosConfigurations.spark-netboot = nixpkgs.lib.nixosSystem {
        modules = [
          "${nixpkgs}/nixos/modules/installer/netboot/netboot.nix"
          ./spark.nix
          ./configuration.nix
        ];
      };
    };
}

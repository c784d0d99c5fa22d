# The same tools with and without flakes. Python's packages come from the hashed requirements, by `make`.
{
  pkgs ? import <nixpkgs> { },
}:
pkgs.mkShell {
  packages = [
    pkgs.python313
    pkgs.gnumake
    pkgs.postgresql_18
    pkgs.rabbitmq-server
    pkgs.traefik
    pkgs.curl
  ];
  # The wheels of PostgreSQL, Traefik and Python's packages are built for any Linux, which Nix is not.
  LD_LIBRARY_PATH = pkgs.lib.optionalString pkgs.stdenv.isLinux (
    pkgs.lib.makeLibraryPath [
      pkgs.stdenv.cc.cc.lib
      pkgs.zlib
    ]
  );
}

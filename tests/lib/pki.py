# SPDX-License-Identifier: MIT
"""Certificates and keys for tests of TLS, in the folders and under the names that disk servers expect. Made with openssl."""
import os
import pathlib
import subprocess

from lib import peers

CONFIG = """
[req]
distinguished_name = dn
prompt = no
[dn]
[ca]
default_ca = this
[this]
dir = {folder}
database = {folder}/index.txt
new_certs_dir = {folder}
crlnumber = {folder}/crlnumber
serial = {folder}/serial
default_md = sha256
default_crl_days = 30
policy = any
[any]
commonName = supplied
[v3_ca]
basicConstraints = critical,CA:TRUE
keyUsage = critical,keyCertSign,cRLSign
subjectKeyIdentifier = hash
"""


def openssl(*args, folder):
    subprocess.run([peers.need("openssl"), *map(str, args)], cwd=folder, check=True, capture_output=True, timeout=60)


class Authority:
    """One that signs. `folder(name, ...)` makes a folder of credentials that it has signed."""

    def __init__(self, where, name):
        self.where = pathlib.Path(where) / name
        self.where.mkdir(parents=True)
        self.serial = 0
        (self.where / "openssl.cnf").write_text(CONFIG.format(folder=self.where))
        (self.where / "index.txt").touch()
        (self.where / "crlnumber").write_text("01\n")
        (self.where / "serial").write_text("1000\n")
        self.key("ca-key.pem")
        openssl("req", "-x509", "-new", "-key", "ca-key.pem", "-out", "ca-cert.pem", "-days", "30", "-subj", f"/CN=authority {name}", "-config", "openssl.cnf",
                "-extensions", "v3_ca", folder=self.where)

    @property
    def cert(self):
        return self.where / "ca-cert.pem"

    def key(self, path, password=None):
        openssl("genpkey", "-algorithm", "EC", "-pkeyopt", "ec_paramgen_curve:P-256", "-out", path, *(["-aes-256-cbc", "-pass", f"pass:{password}"] if password else []),
                folder=self.where)

    def sign(self, prefix, subject, purpose, names=(), days=20, password=None, begin=None, end=None):
        """prefix-key.pem and prefix-cert.pem in the authority's folder."""
        self.serial += 1
        extensions = self.where / f"{prefix}.ext"
        extensions.write_text("basicConstraints=critical,CA:FALSE\nkeyUsage=critical,digitalSignature\nextendedKeyUsage=" + purpose + "\n" +
                              (f"subjectAltName={','.join(names)}\n" if names else ""))
        self.key(f"{prefix}-key.pem", password)
        secret = ["-passin", f"pass:{password}"] if password else []
        openssl("req", "-new", "-key", f"{prefix}-key.pem", "-out", f"{prefix}.csr", "-subj", subject, "-config", "openssl.cnf", *secret, folder=self.where)
        if begin:
            openssl("ca", "-batch", "-config", "openssl.cnf", "-in", f"{prefix}.csr", "-out", f"{prefix}-cert.pem", "-extfile", extensions, "-startdate", begin, "-enddate", end,
                    "-cert", "ca-cert.pem", "-keyfile", "ca-key.pem", "-notext", folder=self.where)
        else:
            openssl("x509", "-req", "-in", f"{prefix}.csr", "-CA", "ca-cert.pem", "-CAkey", "ca-key.pem", "-set_serial", self.serial, "-days", days, "-out",
                    f"{prefix}-cert.pem", "-extfile", extensions, folder=self.where)

    def folder(self, name, server=None, client=None, **kwargs):
        """A folder with ca-cert.pem and, for server=NAMES (of its subject's alternatives), or client=SUBJECT, certificate and key."""
        made = self.where / name
        made.mkdir()
        os.link(self.cert, made / "ca-cert.pem")
        if server:
            self.sign(f"{name}-s", "/CN=server", "serverAuth", server, **kwargs)
        if client:
            self.sign(f"{name}-c", client, "clientAuth", **kwargs)
        for side, made_here in (("server", server), ("client", client)):
            for part in ("key", "cert"):
                if made_here:
                    os.link(self.where / f"{name}-{side[0]}-{part}.pem", made / f"{side}-{part}.pem")
        return made

    def revoke(self, prefix, path):
        """A list of revocations that names that certificate."""
        openssl("ca", "-config", "openssl.cnf", "-revoke", f"{prefix}-cert.pem", "-cert", "ca-cert.pem", "-keyfile", "ca-key.pem", folder=self.where)
        openssl("ca", "-config", "openssl.cnf", "-gencrl", "-out", path, "-cert", "ca-cert.pem", "-keyfile", "ca-key.pem", folder=self.where)


def psk_folder(where, name, **keys):
    """A folder with keys.psk: user=key in hexadecimal."""
    made = pathlib.Path(where) / name
    made.mkdir()
    (made / "keys.psk").write_text("".join(f"{user}:{key}\n" for user, key in keys.items()))
    (made / "keys.psk").chmod(0o600)
    return made

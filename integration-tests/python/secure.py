"""A server with logins and TLS: the config file it reads, and the certificates of a CA made for the test."""

import datetime as dt
import hashlib
import ipaddress
import json

import argon2
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from harness import PASSWORD, USER

# The form of an API token is public: a name to find it by, and 256 bits in hex.
TOKEN = "updraft_ci_" + hashlib.sha256(b"no secret: a token for tests").hexdigest()


class Certs:
    """ca.pem, server.pem/.key for 127.0.0.1 and localhost, client.pem/.key, and another CA that nobody trusts."""

    def __init__(self, folder):
        folder.mkdir(parents=True, exist_ok=True)
        self.folder = folder
        self._ca_key, self._ca = self._issue("ca", "Updraft test CA", None)
        self._issue("other-ca", "Some other CA", None)
        self.renew_server()
        self._issue("client", "grace", ExtendedKeyUsageOID.CLIENT_AUTH)

    def renew_server(self):
        """A fresh server certificate in the same place; its serial number is returned."""
        return self._issue("server", "localhost", ExtendedKeyUsageOID.SERVER_AUTH)[1].serial_number

    def __getattr__(self, name):
        """certs.ca, certs.server, certs.server_key, certs.client, certs.client_key, certs.other_ca: paths."""
        if name.startswith("_"):
            raise AttributeError(name)
        stem, key = (name[:-4], ".key") if name.endswith("_key") else (name, ".pem")
        return self.folder / (stem.replace("_", "-") + key)

    def pem(self, name):
        return getattr(self, name).read_bytes()

    def _issue(self, stem, common_name, usage):
        key = ec.generate_private_key(ec.SECP256R1())
        name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, common_name)])
        now = dt.datetime.now(dt.timezone.utc)
        signer, issuer = (self._ca_key, self._ca.subject) if usage else (key, name)
        builder = (
            x509.CertificateBuilder().subject_name(name).issuer_name(issuer).public_key(key.public_key()).serial_number(x509.random_serial_number())
            .not_valid_before(now - dt.timedelta(hours=1)).not_valid_after(now + dt.timedelta(days=30))
            .add_extension(x509.BasicConstraints(ca=usage is None, path_length=None), critical=True)
        )  # fmt: skip
        if usage:
            builder = builder.add_extension(x509.ExtendedKeyUsage([usage]), critical=False)
            names = [x509.DNSName(common_name), *([x509.IPAddress(ipaddress.ip_address("127.0.0.1"))] if stem == "server" else [])]
            builder = builder.add_extension(x509.SubjectAlternativeName(names), critical=False)
        certificate = builder.sign(signer, hashes.SHA256())
        pem, private = self.folder / f"{stem}.pem", self.folder / f"{stem}.key"
        private.write_bytes(key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()))
        pem.write_bytes(certificate.public_bytes(serialization.Encoding.PEM))
        return key, certificate


def write(path, *, tls=None, mutual=None, users=False, text=""):
    """A config file: TLS with these Certs, client certificates optional ("optional") or "required", one user and one token."""
    path.parent.mkdir(parents=True, exist_ok=True)
    lines = [text]
    if tls:
        lines += ["[flight.tls]", f"certificate = {json.dumps(str(tls.server))}", f"key = {json.dumps(str(tls.server_key))}"]
        if mutual:
            lines += [f"client_ca = {json.dumps(str(tls.ca))}", f'client_certificate = "{mutual}"']
    if users:
        digest = argon2.PasswordHasher(time_cost=1, memory_cost=8 * 1024, parallelism=1).hash(PASSWORD)
        lines += [f"[auth.users.{USER}]", f"password_hash = {json.dumps(digest)}"]
        lines += ["[auth.tokens.ci]", 'principal = "ci"', f'hash = "sha256:{hashlib.sha256(TOKEN.encode()).hexdigest()}"']
    if mutual:
        lines += ["[auth.certificates]", 'grace = "grace"']
    path.write_text("\n".join(lines) + "\n")
    return path



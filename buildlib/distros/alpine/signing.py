"""RSA signatures as apk and OpenRC's modloop check them."""

from __future__ import annotations

import hashlib
from typing import Any

from buildlib.errors import BuildError

ALGORITHMS = {"RSA": "SHA1", "RSA256": "SHA256", "RSA512": "SHA512"}
"""What the middle of a signature's name, `.SIGN.RSA256.KEY`, tells of it."""


def verify(data: bytes, signature: bytes, key: bytes, kind: str) -> bool:
    """Whether a signature is of that public key (PEM). kind -- as in its name."""
    from cryptography.exceptions import InvalidSignature
    from cryptography.hazmat.primitives import hashes, serialization
    from cryptography.hazmat.primitives.asymmetric import padding, rsa

    if kind not in ALGORITHMS:
        return False
    try:
        public = serialization.load_pem_public_key(key)
        if isinstance(public, rsa.RSAPublicKey):
            public.verify(signature, data, padding.PKCS1v15(), getattr(hashes, ALGORITHMS[kind])())
            return True
    except (InvalidSignature, ValueError):
        pass
    return False


def sign(data: bytes, key: str) -> bytes:
    """The signature over the SHA-1, which every version of apk can check; the same for the same. Raises BuildError."""
    from cryptography.hazmat.primitives import hashes
    from cryptography.hazmat.primitives.asymmetric import padding

    made: bytes = _private(key).sign(data, padding.PKCS1v15(), hashes.SHA1())
    return made


def public(key: str) -> tuple[str, bytes]:
    """File name and PEM of a private key's public one; the name tells keys apart. Raises BuildError."""
    from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

    pem: bytes = _private(key).public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)
    return f"netboot-{hashlib.sha256(pem).hexdigest()[:8]}.rsa.pub", pem


def _private(key: str) -> Any:
    from cryptography.hazmat.primitives import serialization
    from cryptography.hazmat.primitives.asymmetric import rsa

    try:
        found = serialization.load_pem_private_key(key.encode(), None)
    except (TypeError, ValueError):
        found = None
    if not isinstance(found, rsa.RSAPrivateKey):
        raise BuildError("alpine.signing-key: is no plain RSA key", hint="openssl genrsa -out FILE 4096 makes one")
    return found

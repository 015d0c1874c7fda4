"""Files with Content Credentials that are signed, by a certificate of this file's own making."""

from __future__ import annotations

import datetime
import functools
import io

import c2pa
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

MEDIA_TYPES = {"JPEG": "image/jpeg", "PNG": "image/png", "WEBP": "image/webp", "AVIF": "image/avif", "JXL": "image/jxl"}
CV = "http://cv.iptc.org/newscodes/digitalsourcetype/"


def _certificate(name: str, key, issuer: str, issuer_key, *, is_authority: bool) -> x509.Certificate:
    def named(text: str) -> x509.Name:
        organisation = x509.NameAttribute(NameOID.ORGANIZATION_NAME, "npr-kernels tests")
        return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, text), organisation])

    now = datetime.datetime.now(datetime.timezone.utc)
    usage = x509.KeyUsage(True, False, False, False, False, is_authority, is_authority, False, False)
    builder = (
        x509.CertificateBuilder()
        .subject_name(named(name))
        .issuer_name(named(issuer))
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(days=1))
        .not_valid_after(now + datetime.timedelta(days=9))
        .add_extension(x509.BasicConstraints(is_authority, None), critical=True)
        .add_extension(usage, critical=True)
        .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(issuer_key.public_key()), critical=False)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
    )
    if not is_authority:
        builder = builder.add_extension(x509.ExtendedKeyUsage([ExtendedKeyUsageOID.EMAIL_PROTECTION]), critical=False)
    return builder.sign(issuer_key, hashes.SHA256())


@functools.cache
def _identity() -> tuple[bytes, bytes, bytes]:
    """The chain of certificates, the signer's key and the authority's certificate, all as PEM."""
    authority_key, key = ec.generate_private_key(ec.SECP256R1()), ec.generate_private_key(ec.SECP256R1())
    authority = _certificate("Authority", authority_key, "Authority", authority_key, is_authority=True)
    signer = _certificate("Signer", key, "Authority", authority_key, is_authority=False)
    pem = serialization.Encoding.PEM
    secret = key.private_bytes(pem, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    return signer.public_bytes(pem) + authority.public_bytes(pem), secret, authority.public_bytes(pem)


def authority() -> bytes:
    """The certificate that vouches for the signer, as PEM."""
    return _identity()[2]


def signed(data: bytes, format: str, source_type: str, *, generator: str = "OpenAI-API") -> bytes:
    """``data`` with signed Content Credentials: created by ``generator`` as one of IPTC's digital source types."""
    chain, key, _ = _identity()
    action = {"action": "c2pa.created", "digitalSourceType": CV + source_type}
    manifest = {
        "claim_generator_info": [{"name": generator, "version": "1"}],
        "assertions": [{"label": "c2pa.actions", "data": {"actions": [action]}}],
    }
    context = c2pa.Context(c2pa.Settings.from_dict({"builder": {"thumbnail": {"enabled": False}}}))
    signer = c2pa.Signer.from_info(c2pa.C2paSignerInfo(c2pa.C2paSigningAlg.ES256, chain, key, None))
    file = io.BytesIO()
    c2pa.Builder(manifest, context=context).sign(signer, MEDIA_TYPES[format], io.BytesIO(data), file)
    return file.getvalue()

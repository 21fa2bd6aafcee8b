"""A stand-in for https://download.pytorch.org behind an HTTPS proxy: one torch of its CPU index, as a wheel without code.

What reaches it is the real client (uv): names, certificates, index page and wheel go the way they go with the real host, which
is found by HTTPS_PROXY and trusted by SSL_CERT_FILE. Any other host is refused.
"""

from __future__ import annotations

import base64
import datetime
import hashlib
import io
import socket
import ssl
import threading
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

HOST = "download.pytorch.org"
WHEEL = "torch-2.13.0%2Bcpu-py3-none-any.whl"


def wheel() -> bytes:
    """torch 2.13.0+cpu with nothing in it."""
    info, packed = "torch-2.13.0+cpu.dist-info", io.BytesIO()
    files = {
        "torch/__init__.py": "",
        f"{info}/METADATA": "Metadata-Version: 2.1\nName: torch\nVersion: 2.13.0+cpu\n",
        f"{info}/WHEEL": "Wheel-Version: 1.0\nGenerator: tests\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
    }
    record = []
    with zipfile.ZipFile(packed, "w") as archive:
        for name, text in files.items():
            archive.writestr(name, text)
            digest = base64.urlsafe_b64encode(hashlib.sha256(text.encode()).digest()).rstrip(b"=").decode()
            record.append(f"{name},sha256={digest},{len(text)}")
        archive.writestr(f"{info}/RECORD", "\n".join([*record, f"{info}/RECORD,,"]) + "\n")
    return packed.getvalue()


def certificate(folder: Path) -> tuple[Path, Path]:
    """Files: HOST's certificate with its key behind it, and the authority that signed it."""
    now, names = datetime.datetime.now(datetime.UTC), ("authority", HOST)
    keys = [ec.generate_private_key(ec.SECP256R1()) for _ in names]
    files = [folder / f"{name}.pem" for name in names]
    for name, key, file in zip(names, keys, files, strict=True):
        issuer, subject = (x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, n)]) for n in (names[0], name))
        made = (
            x509.CertificateBuilder(issuer, subject, key.public_key(), x509.random_serial_number())
            .not_valid_before(now - datetime.timedelta(hours=1))
            .not_valid_after(now + datetime.timedelta(days=1))
            .add_extension(x509.SubjectAlternativeName([x509.DNSName(name)]), critical=False)
            .add_extension(x509.BasicConstraints(ca=name != HOST, path_length=None), critical=True)
            .sign(keys[0], hashes.SHA256())
        )
        form = (serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
        pem = serialization.Encoding.PEM
        file.write_bytes(made.public_bytes(pem) + key.private_bytes(pem, *form))
    return files[1], files[0]


@contextmanager
def serving(folder: Path) -> Iterator[tuple[dict[str, str], list[str]]]:
    """The environment by which a client finds the stand-in, and the paths that it was asked for."""
    (own, authority), asked, packed = certificate(folder), list[str](), wheel()
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(own)
    digest = hashlib.sha256(packed).hexdigest()
    page = f'<!DOCTYPE html><html><body><a href="/whl/cpu/{WHEEL}#sha256={digest}">torch</a></body></html>'.encode()

    def answer(client: socket.socket) -> None:
        with suppress(OSError, ValueError), client:
            first = client.recv(65536).split()
            if first[:2] != [b"CONNECT", f"{HOST}:443".encode()]:
                client.sendall(b"HTTP/1.1 403 Forbidden\r\nContent-Length: 0\r\n\r\n")
                return
            client.sendall(b"HTTP/1.1 200 Connection established\r\n\r\n")
            with context.wrap_socket(client, server_side=True) as secure:
                while request := secure.recv(65536):
                    path = request.split()[1].decode()
                    asked.append(path)
                    known = {"/whl/cpu/torch/": (page, "text/html"), f"/whl/cpu/{WHEEL}": (packed, "application/zip")}
                    body, kind = known.get(path, (b"", ""))
                    status = "200 OK" if kind else "404 Not Found"
                    head = f"HTTP/1.1 {status}\r\nContent-Type: {kind or 'text/plain'}\r\nContent-Length: {len(body)}\r\n\r\n"
                    secure.sendall(head.encode() + (b"" if request.startswith(b"HEAD") else body))

    def accept(listener: socket.socket) -> None:
        with suppress(OSError):
            while True:
                client, _ = listener.accept()
                threading.Thread(target=answer, args=(client,), daemon=True).start()

    with socket.create_server(("127.0.0.1", 0)) as listener:
        threading.Thread(target=accept, args=(listener,), daemon=True).start()
        proxy = f"http://127.0.0.1:{listener.getsockname()[1]}"
        yield {"HTTPS_PROXY": proxy, "SSL_CERT_FILE": str(authority), "NO_PROXY": ""}, asked
        listener.shutdown(socket.SHUT_RDWR)

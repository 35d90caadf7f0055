"""server/http/certificate.py: what clients would find is found before they do."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from server.http import certificate
from server.http.certificate import Certificate, CertificateError, check_certificate
from tests.support.paths import ROOT
from tests.support.tls import (
    CERTIFICATE,
    ENCRYPTED_KEY,
    EXPIRED_CERTIFICATE,
    EXPIRED_KEY,
    KEY,
    UNUSED_CURVE_CERTIFICATE,
    UNUSED_CURVE_KEY,
)

ONLY_TLS_1_2 = """\
openssl_conf = all
[all]
ssl_conf = of_tls
[of_tls]
system_default = limits
[limits]
MaxProtocol = TLSv1.2
"""
PRINT_CHECKED = """
import ssl, sys
from server.http.certificate import check_certificate
assert ssl.create_default_context().maximum_version == ssl.TLSVersion.TLSv1_2
print(check_certificate(*sys.argv[1:]))
"""


def test_a_certificate_with_its_key_has_an_end(tmp_path: Path) -> None:
    """Also if both are in one file."""
    found = check_certificate(CERTIFICATE, KEY)
    assert found.ends > "2026" and not found.fault
    both = tmp_path / "both.pem"
    both.write_bytes(CERTIFICATE.read_bytes() + KEY.read_bytes())
    assert check_certificate(both, both) == found


def test_an_expired_certificate_has_a_fault() -> None:
    fault = f"--ssl-certfile {EXPIRED_CERTIFICATE}: clients will refuse it: certificate has expired"
    assert check_certificate(EXPIRED_CERTIFICATE, EXPIRED_KEY) == Certificate("", fault)


def test_a_key_that_no_client_agrees_to_has_a_fault() -> None:
    fault = f"--ssl-certfile {UNUSED_CURVE_CERTIFICATE}: clients will refuse it: no shared cipher"
    assert check_certificate(UNUSED_CURVE_CERTIFICATE, UNUSED_CURVE_KEY) == Certificate("", fault)


def test_a_machine_without_tls_1_3_finds_the_same(tmp_path: Path) -> None:
    config = tmp_path / "openssl.cnf"
    config.write_text(ONLY_TLS_1_2)
    variables = os.environ | {"OPENSSL_CONF": str(config)}
    for files in ((CERTIFICATE, KEY), (EXPIRED_CERTIFICATE, EXPIRED_KEY)):
        command = [sys.executable, "-c", PRINT_CHECKED, *map(str, files)]
        ran = subprocess.run(command, cwd=ROOT, env=variables, capture_output=True, text=True, check=False)
        assert (ran.stdout, ran.stderr) == (f"{check_certificate(*files)}\n", "")


def test_an_unfinished_handshake_is_no_fault(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(certificate, "NUM_FLIGHTS", 1)
    assert check_certificate(CERTIFICATE, KEY) == Certificate("", "")


@pytest.mark.parametrize(("cert", "key"), [(CERTIFICATE, EXPIRED_KEY), (KEY, KEY), (CERTIFICATE, CERTIFICATE)])
def test_files_that_do_not_belong_together_are_an_error(cert: Path, key: Path) -> None:
    with pytest.raises(CertificateError, match=r"these are not a certificate and its key$"):
        check_certificate(cert, key)


def test_an_encrypted_key_is_refused_without_a_prompt() -> None:
    with pytest.raises(CertificateError, match=r"^--ssl-keyfile: the key is encrypted; give one without a pass phr"):
        check_certificate(CERTIFICATE, ENCRYPTED_KEY)


def test_a_file_that_cannot_be_read_has_its_reason(tmp_path: Path) -> None:
    with pytest.raises(CertificateError, match=r"cannot be read: No such file or directory$"):
        check_certificate(tmp_path / "gone.pem", KEY)

"""server/http/certificate.py: what clients would find is found before they do."""

from pathlib import Path

import pytest

from server.http.certificate import Certificate, CertificateError, check_certificate
from tests.support.tls import CERTIFICATE, ENCRYPTED_KEY, EXPIRED_CERTIFICATE, EXPIRED_KEY, KEY


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

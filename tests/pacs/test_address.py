"""What names an archive or a study on the command line, and what does not."""

from __future__ import annotations

import pytest

from tf_covid.errors import PacsError
from tf_covid.pacs.address import archive_url, is_uid, study_address


@pytest.mark.parametrize(
    ("text", "url"),
    [
        ("dicomweb:http://127.0.0.1:8042/dicom-web#1.2.3", "http://127.0.0.1:8042/dicom-web"),
        ("dicomweb:https://pacs.example/dicom-web/#1.2.3", "https://pacs.example/dicom-web"),
        ("dicomweb:https://a:b@pacs.example#1.2.3", "https://a:b@pacs.example"),
    ],
)
def test_a_study(text: str, url: str) -> None:
    address = study_address(text)
    assert (address.url, address.study_uid) == (url, "1.2.3")
    assert "1.2.3" not in repr(address)
    assert "a:b" not in repr(address)


@pytest.mark.parametrize(
    "text",
    [
        "dicomweb:",
        "dicomweb:#1.2.3",
        "dicomweb:https://pacs.example",
        "dicomweb:https://pacs.example#",
        "dicomweb:https://pacs.example#hidden",
        "dicomweb:https://pacs.example#1.2.03",
        "dicomweb:https://pacs.example#1",
        "dicomweb:https://pacs.example#1..2",
        "dicomweb:https://pacs.example#1.2.3/../..",
        "dicomweb:https://pacs.example#1.2.3\n",
        "dicomweb:https://pacs.example#" + "1." * 40 + "1",
        "dicomweb:https://pacs.example?token=hidden#1.2.3",
        "dicomweb:ftp://pacs.example#1.2.3",
        "dicomweb:pacs.example#1.2.3",
        "dicomweb:https://#1.2.3",
        "dicomweb:https://hidden:port#1.2.3",
    ],
)
def test_what_is_none_is_named_and_not_repeated(text: str) -> None:
    with pytest.raises(PacsError, match="pacs_url") as caught:
        study_address(text)
    assert "hidden" not in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("text", ["dicomweb:https://pacs.example/", "https://pacs.example"])
def test_an_archive_with_and_without_its_kind(text: str) -> None:
    assert archive_url(text) == "https://pacs.example"


@pytest.mark.parametrize(
    ("text", "good"),
    [
        ("1.2.3", True),
        ("2.25.0", True),
        ("1.02", False),
        ("", False),
        ("1.2.", False),
        ("a", False),
    ],
)
def test_uids(text: str, good: bool) -> None:
    assert is_uid(text) is good

"""The accounts of a sync: what a file may look like, and that no message shows what is in it."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lamella.cli.accounts import accounts_of_environment, others_can_read
from lamella.maesn import Account
from lamella.maesn.accounts_file import accounts_in

SECRET = "s3cr3t-account-key"


def write(folder: Path, text: str | bytes, name: str = "accounts.csv") -> Path:
    path = folder / name
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return path


def complaint_of(path: Path) -> str | None:
    try:
        accounts_in(path)
    except ValueError as error:
        return str(error)
    return None


@pytest.mark.parametrize(
    "text",
    [
        "name,key\nAda,k1\nBob & Söhne,k2\n",
        "\ufeffname,key\r\nAda,k1\r\nBob & Söhne,k2\r\n",
        "key;name\nk1;Ada\nk2;Bob & Söhne",
        'Name,KEY,company_id,environment_name\n\n" Ada ",k1,,\n\nBob & Söhne,"k2", ,\n',
        'name, key\n"Ada", "k1"\nBob & Söhne, "k2"\n',
    ],
)
def test_csv(tmp_path: Path, text: str) -> None:
    assert accounts_in(write(tmp_path, text)) == (Account("Ada", "k1"), Account("Bob & Söhne", "k2"))


def test_csv_accounts_can_have_parameters(tmp_path: Path) -> None:
    path = write(tmp_path, "name,key,params\nAda,k1,openItems:fiscalYear=2026 accounts:types='a b'\nBob,k2,\n")
    params = {"openItems": {"fiscalYear": "2026"}, "accounts": {"types": "a b"}}
    assert accounts_in(path) == (Account("Ada", "k1", params=params), Account("Bob", "k2"))


@pytest.mark.parametrize(
    "params", ["fiscalYear=2026", "openItems:k3y", "openItems:colour=k3y", "openItems:page=2", "'"]
)
def test_csv_accounts_with_bad_parameters_are_rejected(tmp_path: Path, params: str) -> None:
    path = write(tmp_path, f"name;key;params\nAda;k1;{params}\n")
    with pytest.raises(ValueError, match="line 2: params must be like openItems:fiscalYear=2026") as caught:
        accounts_in(path)
    assert "k3y" not in str(caught.value)


def test_csv_accounts_can_have_all_columns(tmp_path: Path) -> None:
    path = write(tmp_path, "name;company_id;key;environment_name\nAda;7;k1;test\nBob;8;k1;\n")
    # One key may be for several companies.
    assert accounts_in(path) == (Account("Ada", "k1", "7", "test"), Account("Bob", "k1", "8"))


@pytest.mark.parametrize(
    ("text", "accounts"),
    [
        ('[[accounts]]\nname = "Ada"\nkey = "k1"\n', (Account("Ada", "k1"),)),
        (
            '[[accounts]]\nname = "Ada"\nkey = "k1"\ncompany_id = "7"\nenvironment_name = "test"',
            (Account("Ada", "k1", "7", "test"),),
        ),
        ('[accounts]\nAda = "k1"\n"Bob & Söhne" = "k2"\n', (Account("Ada", "k1"), Account("Bob & Söhne", "k2"))),
        (
            '[[accounts]]\nname = "Ada"\nkey = "k1"\n[accounts.params.openItems]\nfiscalYear = 2026\ntype = "B C"',
            (Account("Ada", "k1", params={"openItems": {"fiscalYear": "2026", "type": "B C"}}),),
        ),
        (
            '[[accounts]]\nname = "Ada"\nkey = "k1"\nparams = "openItems:fiscalYear=2026"',
            (Account("Ada", "k1", params={"openItems": {"fiscalYear": "2026"}}),),
        ),
        ('accounts = [{name = "Ada", key = "k1"}]', (Account("Ada", "k1"),)),
        ('accounts.Ada = "k1"', (Account("Ada", "k1"),)),
    ],
)
def test_toml(tmp_path: Path, text: str, accounts: tuple[Account, ...]) -> None:
    assert accounts_in(write(tmp_path, f"\ufeff{text}", "accounts.TOML")) == accounts


@pytest.mark.parametrize(
    ("text", "why"),
    [
        (
            "",
            (
                "line 1: must be the header: name,key and optionally company_id, environment_name, without and params, "
                "each once"
            ),
        ),
        ("Ada,k1\n", "line 1: must be the header"),
        ("name\nAda\n", "line 1: must be the header"),
        ("name,key,key\nAda,k1,k1\n", "line 1: must be the header"),
        ("name,key,colour\nAda,k1,red\n", "line 1: must be the header"),
        ("\n\nname;key,colour\n", "line 3: must be the header"),
        ("name,key\n", "no accounts in it"),
        ("name,key\nAda,k1\n\nBob\n", "line 4: 1 values, and the header has 2"),
        ("name,key\nAda,k1,7\n", "line 2: 3 values, and the header has 2"),
        ("name,key\nAda,k1\n,k2\n", "line 3: no name"),
        ("name,key\nAda,k1\nBob, \n", "line 3: no key"),
        ('name,key\n"A\nda",k1\n', "line 2: the name must be a line of text"),
        ("name,key\nAda,k1\nBob,ключ\n", "line 3: the key must be printable ASCII, because it is sent in a header"),
        ('name,key\nAda,"k\n1"\n', "line 2: the key must be printable ASCII"),
        ("name,key\nk1,k1\n", "line 2: the name is the key, and names are shown"),
        ('name,key\n"Ada\n ",k1\nAda,k2\n', "line 4: the same name as in line 2"),
        ("name,key\nAda,k1\nBob,k1\n", "line 3: the same key as in line 2"),
        ('name,key\nAda,k1\nBob,"k2\n', "line 3: is not valid CSV: check its quotes"),
        ('name,key\nAda,"k1"x\n', "line 2: is not valid CSV"),
        (b"name,key\nAda,k1\nS\xf6hne,k2\n", "line 3 is not UTF-8: save the file as UTF-8"),
    ],
)
def test_csv_errors_are_reported_with_their_line(tmp_path: Path, text: str | bytes, why: str) -> None:
    path = write(tmp_path, text)
    assert (complaint_of(path) or "").startswith(f"{path}: {why}")


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("", "must hold accounts and nothing else: a table [[accounts]] for each, or one table [accounts]"),
        ("accounts = 7", "must hold accounts and nothing else"),
        ('[[accounts]]\nname = "Ada"\nkey = "k1"\n[other]\n', "must hold accounts and nothing else"),
        ("accounts = []", "no accounts in it"),
        ("accounts = [7]", "account 1: must be a table"),
        ('\n[[accounts]]\nname = "Ada"\n', "line 2: no key"),
        (
            '[[accounts]]\nname = "Ada"\nkey = "k1"\n\n[[accounts]]\nname = "Bob"\nkey = 7',
            "line 5: the key must be a non-empty text",
        ),
        ('[[accounts]]\nname = "Ada"\nkey = "k1"\ncompany_id = ""', "line 1: the company_id must be a non-empty text"),
        ('[[accounts]]\nname = "Ada"\nkey = "k1"\ncolour = "red"', "line 1: unknown field; expected one of name, key"),
        ('[accounts]\n# both\nAda = "k1"\n\nBob = "k1"', "line 5: the same key as in line 3"),
        ('[accounts]\nAda = "k1"\nBob = ""', "line 3: the key must be a non-empty text"),
        ('accounts = {Ada = "k1", Bob = "k1"}', "account 2: the same key as in account 1"),
        ('[accounts]\nAda = "k1"\nAda = "k2"', "line 3: is not valid TOML"),
        ('[accounts]\nAda = "k1', "line 2: is not valid TOML"),
    ],
)
def test_toml_errors_are_reported_with_their_line(tmp_path: Path, text: str, why: str) -> None:
    path = write(tmp_path, text, "accounts.toml")
    assert (complaint_of(path) or "").startswith(f"{path}: {why}")


def test_an_unreadable_accounts_file_is_reported(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"missing\.csv: cannot be read: No such file or directory"):
        accounts_in(tmp_path / "missing.csv")
    with pytest.raises(ValueError, match="cannot be read: Is a directory"):
        accounts_in(tmp_path)


PIECES = st.sampled_from(
    [SECRET, "name", "key", "company_id", ",", ";", "\n", '"', "'", "Ada", "=", "[[accounts]]\n", "[accounts]\n", " ",
     "{", "}", "\\", "\u2028", "\x00", "#"]
)  # fmt: skip


@given(st.lists(PIECES, max_size=25).map("".join), st.sampled_from(["a.csv", "a.toml"]))
def test_no_message_shows_the_content_of_an_accounts_file(
    tmp_path_factory: pytest.TempPathFactory, text: str, name: str
) -> None:
    path = tmp_path_factory.getbasetemp() / name
    path.write_text(text, encoding="utf-8")
    complaint = complaint_of(path)
    if complaint is None:
        assert all(account.name.isprintable() for account in accounts_in(path))
    else:
        assert SECRET not in complaint


@pytest.mark.parametrize(
    ("text", "name"),
    [
        (f"Ada,{SECRET}\n", "a.csv"),
        (f"name,key\nAda,{SECRET},{SECRET}", "a.csv"),
        (f"name,key\n{SECRET},{SECRET}", "a.csv"),
        (f'accounts = {{{SECRET} = "Ada", {SECRET} = "Bob"}}', "a.toml"),
        (f"[accounts]\nAda = {SECRET}", "a.toml"),
    ],
)
def test_no_message_shows_a_key_in_a_wrong_column(tmp_path: Path, text: str, name: str) -> None:
    with pytest.raises(ValueError, match="line") as caught:
        accounts_in(write(tmp_path, text, name))
    assert SECRET not in str(caught.value)
    # Nor by what came before it, which a traceback would show.
    assert caught.value.__cause__ is None
    assert caught.value.__suppress_context__


class TestTheEnvironment:
    def test_the_environment_can_give_one_account(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("MAESN_ACCOUNT_KEY", f" {SECRET}\n")
        assert accounts_of_environment() == (Account("default", SECRET),)

    @pytest.mark.parametrize("key", [None, "", " "])
    def test_none(self, monkeypatch: pytest.MonkeyPatch, key: str | None) -> None:
        monkeypatch.delenv("MAESN_ACCOUNT_KEY", raising=False)
        if key is not None:
            monkeypatch.setenv("MAESN_ACCOUNT_KEY", key)
        with pytest.raises(ValueError, match="give --accounts FILE, or set MAESN_ACCOUNT_KEY"):
            accounts_of_environment()

    def test_an_invalid_key_in_the_environment_is_rejected(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("MAESN_ACCOUNT_KEY", "schlüssel")
        with pytest.raises(
            ValueError, match=r"^MAESN_ACCOUNT_KEY must be printable ASCII, because it is sent in a header$"
        ):
            accounts_of_environment()


@pytest.mark.skipif(os.name != "posix", reason="there are no such permissions")
def test_an_accounts_file_readable_by_others_is_noticed(tmp_path: Path) -> None:
    path = write(tmp_path, "")
    for mode, others in ((0o600, False), (0o400, False), (0o640, True), (0o604, True), (0o666, True)):
        path.chmod(mode)
        assert others_can_read(path) is others
    assert not others_can_read(tmp_path), "a folder's permissions are of another kind"
    assert not others_can_read(tmp_path / "missing")

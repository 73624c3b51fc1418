"""The WireGuard key of this host: a file with mode 0600, created at the first start and then kept."""

import os
from collections.abc import Callable
from pathlib import Path

from pyflannel.errors import TargetError, target_errors
from pyflannel.kernel.filters.programs import MissingProgramError, Ran, run_program
from pyflannel.kernel.host.files import KEY_MODE, Replacement, next_path, read_key_file, unusable_key
from pyflannel.kernel.network.links import has_wireguard
from pyflannel.model.store_record import Secret
from pyflannel.model.wireguard import KEY_BYTES, WireguardFacts, parse_key
from pyflannel.ports import in_thread

PROGRAM = "wg"
_NAME = "the WireGuard key file"


class WireguardKeys:
    """Access to the key file of one network.

    Args:
        path: path of the key file.
        original: key file of the original flannel. The key in this file is used if `path` does not exist.
        objection: the reason why wireguard-go cannot be used; "" if it can be used.
    """

    def __init__(self, path: Path, original: Path | None, objection: Callable[[], str]) -> None:
        self._path = path
        self._next = next_path(path)
        self._original = original
        self._objection = objection
        self._private: dict[str, Secret] = {}
        self._public: dict[str, str] = {}
        self._is_in_kernel: bool | None = None
        self._has_observed = False

    def private(self, public_key: str) -> Secret | None:
        """Return the private key of a public key that was read or prepared; None for any other public key."""
        return self._private.get(public_key)

    async def observe(self) -> WireguardFacts:
        """Return the public key of the file, and the implementation. Create the file if it does not exist.

        Raises:
            TargetError: the file, `wg` or wireguard-go is unusable; the message contains the cause.
        """
        if not self._has_observed:
            await in_thread(self._forget_next)
            self._has_observed = True
        text = await in_thread(self._read)
        if text is None:
            text = await self._make()
        public = await self._public_of(text)
        if self._is_in_kernel is None:
            self._is_in_kernel = await has_wireguard()
        problem = "" if self._is_in_kernel else self._objection()
        return WireguardFacts(key=public, published=public, is_in_kernel=self._is_in_kernel, problem=problem)

    async def prepare(self) -> str:
        """Create the next key, write it to a file beside the file of the current key, and return its public
        key.

        Raises:
            TargetError: the key cannot be created or written.
        """
        text = await self._generate()
        public = await self._public_of(text)
        await in_thread(self._write, self._next, text)
        return public

    async def promote(self) -> None:
        """Replace the current key with the prepared key.

        Raises:
            TargetError: the file cannot be renamed.
        """
        with target_errors(f"cannot write the WireGuard key to {self._path}", hint=_WRITABLE):
            await in_thread(os.rename, self._next, self._path)

    async def discard(self) -> None:
        """Discard the prepared key."""
        await in_thread(self._forget_next)

    async def _make(self) -> str:
        adopted = None if self._original is None else await in_thread(_read_key, self._original)
        text = adopted or await self._generate()
        await in_thread(self._write, self._path, text)
        return text

    async def _generate(self) -> str:
        ran = await _wg("genkey")
        key = parse_key(ran.output.strip())
        if key is None:
            raise TargetError(f"wg genkey failed: {ran.cause}", hint=_INSTALL)
        return key

    async def _public_of(self, text: str) -> str:
        if text not in self._public:
            ran = await _wg("pubkey", given=f"{text}\n")
            key = parse_key(ran.output.strip())
            if key is None:
                raise TargetError(f"wg pubkey failed: {ran.cause}", hint=_INSTALL)
            self._public[text], self._private[key] = key, Secret(text)
        return self._public[text]

    def _read(self) -> str | None:
        return _read_key(self._path)

    def _write(self, path: Path, text: str) -> None:
        with target_errors(f"cannot write the WireGuard key to {path}", hint=_WRITABLE):
            with Replacement(str(path), KEY_MODE) as replacement:
                replacement.write(text.encode())
                replacement.finish()

    def _forget_next(self) -> None:
        with target_errors("cannot remove an old WireGuard key", hint=_WRITABLE):
            self._next.unlink(missing_ok=True)


async def _wg(command: str, given: str = "") -> Ran:
    try:
        return await run_program(PROGRAM, command, given=given)
    except MissingProgramError as error:
        raise MissingProgramError(PROGRAM, hint=_INSTALL) from error


_INSTALL = "Install wireguard-tools."
_WRITABLE = "Make the state directory writable for flanneld, or choose another directory with --state-dir."


def _read_key(path: Path) -> str | None:
    """Return the private key in a file; None if the file does not exist.

    Raises:
        TargetError: the file is unreadable, other users may read it, or it contains no key.
    """
    hint = f"Run `chmod 600 {path}`, then `flannelctl rotate-key`; or delete the file to get a new key."
    content = read_key_file(path, _NAME, if_exposed=hint)
    if content is None:
        return None
    text = content.decode(errors="replace").strip()
    if (key := parse_key(text)) is None:
        raise unusable_key(
            path,
            _NAME,
            f"it contains no key of {KEY_BYTES} bytes in base64",
            "Restore the file, or delete it to get a new key.",
        )
    return key

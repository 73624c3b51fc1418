"""A container image made of what the machine has: busybox. Nothing is pulled."""

import io
import shutil
import subprocess
import tarfile
from pathlib import Path

from pyflannel.errors import LabError

NAME = "busybox"


def write_image(path: Path) -> None:
    """Write the root file system of a busybox container as a tar archive, for `docker import`.

    Raises:
        LabError: the machine has no busybox, or one that needs libraries which a container lacks.
    """
    found = shutil.which("busybox")
    if found is None:
        raise LabError("busybox is not installed", hint="Run scripts/setup; it installs busybox-static.")
    program = Path(found).read_bytes()
    if b"/lib64/ld-linux" in program or b"/lib/ld-linux" in program:
        raise LabError(f"{found} needs shared libraries", hint="Install busybox-static in its place.")
    applets = subprocess.run([found, "--list"], capture_output=True, text=True, check=True).stdout.split()
    with tarfile.open(path, "w") as archive:
        _add_file(archive, "bin/busybox", program, mode=0o755)
        for applet in applets:
            if applet != "busybox":
                link = tarfile.TarInfo(f"bin/{applet}")
                link.type, link.linkname = tarfile.SYMTYPE, "busybox"
                archive.addfile(link)
        _add_file(archive, "etc/passwd", b"root:x:0:0:root:/root:/bin/sh\n", mode=0o644)


def _add_file(archive: tarfile.TarFile, name: str, content: bytes, *, mode: int) -> None:
    entry = tarfile.TarInfo(name)
    entry.size, entry.mode = len(content), mode
    archive.addfile(entry, io.BytesIO(content))

"""Programs brought to their hooks, and taken away again."""

from collections.abc import Mapping
from dataclasses import dataclass

from pyflannel.kernel.bpf.hooks import Hooks
from pyflannel.kernel.bpf.layout import Settings, pack_settings
from pyflannel.kernel.bpf.libbpf import Libbpf
from pyflannel.kernel.bpf.object_file import ObjectFile
from pyflannel.kernel.bpf.standing import Standing, StandingPrograms
from pyflannel.kernel.bpf.syscall import opened
from pyflannel.kernel.link_index import link_index
from pyflannel.model.bpf_program import BpfProgram, Tunnel


@dataclass(frozen=True, slots=True, kw_only=True)
class Attacher:
    """Loads programs of one object and brings them to hooks."""

    hooks: Hooks
    programs: StandingPrograms
    library: Libbpf
    object_file: ObjectFile

    async def attach(self, item: BpfProgram, maps: Mapping[str, int]) -> None:
        """Bring a program to its hook, in the place of any other of its role and tunnel there.

        No packet meets a hook without a program in the meantime.

        Raises:
            OSError: a link is missing, or the kernel refused.
            TargetError: the program cannot be loaded.
        """
        link, direction = link_index(item.link), item.role.direction
        settings = pack_settings(settings_of(item.tunnel, self.object_file.build))
        descriptor = self.library.load_program(self.object_file, item.role.value, settings, maps)
        with opened(descriptor):
            before = await self._of_same_key(link, item)
            if before:
                await self.hooks.replace(link, direction, before[0].program.id, descriptor)
            else:
                await self.hooks.attach(link, direction, descriptor)
            for spare in before[1:]:
                await self.hooks.detach(link, direction, spare.program.id)

    async def detach(self, item: BpfProgram) -> None:
        """Take a program away from its hook, if it is there.

        Raises:
            OSError: the kernel refused.
        """
        try:
            link = link_index(item.link)
        except OSError:
            return  # the program went with it
        for one in await self._of_same_key(link, item):
            await self.hooks.detach(link, item.role.direction, one.program.id)

    async def _of_same_key(self, link: int, item: BpfProgram) -> list[Standing]:
        return [
            one
            for one in await self.programs.find([link])
            if one.program.role is item.role and one.program.settings.device == item.tunnel.device
        ]


def settings_of(tunnel: Tunnel, build: bytes) -> Settings:
    """Return what a program is given: the links by the indexes that they have now.

    Raises:
        OSError: ENODEV, a link is missing.
    """
    return Settings(
        build=build,
        device=tunnel.device,
        device_index=link_index(tunnel.device),
        underlay_index=link_index(tunnel.underlay),
        address=tunnel.address,
        subnet=tunnel.subnet,
        port=tunnel.port,
    )

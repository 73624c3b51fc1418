"""An error shows the last useful lines of the verifier's log."""

from pyflannel.kernel.bpf.libbpf import useful_lines

LOG = """\
func#0 @0
0: R1=ctx() R10=fp0
0: (61) r2 = *(u32 *)(r1 +76)         ; R1=ctx() R2=pkt(r=0)
1: (73) *(u8 *)(r2 +12) = r0
invalid access to packet, off=12 size=1, R2(id=0,off=12,r=0)
R2 offset is outside of the packet
processed 2 insns (limit 1000000) max_states_per_insn 0 total_states 0 peak_states 0 mark_read 0

"""


def test_the_statistics_at_the_end_of_the_verifier_log_are_omitted():
    assert useful_lines(LOG) == [
        "1: (73) *(u8 *)(r2 +12) = r0",
        "invalid access to packet, off=12 size=1, R2(id=0,off=12,r=0)",
        "R2 offset is outside of the packet",
    ]


def test_an_empty_verifier_log_has_no_lines():
    assert useful_lines("") == []

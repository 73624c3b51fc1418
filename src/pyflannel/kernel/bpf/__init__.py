"""The udp backend in the kernel: eBPF programs, their maps, and the Target that keeps both as planned."""

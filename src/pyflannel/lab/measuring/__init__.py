"""What is measured: throughput, the cost of kernel objects, and the paths laid by hand beside ours."""

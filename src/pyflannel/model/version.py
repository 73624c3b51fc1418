"""Which version this is; the package's metadata take it from here, as reading those takes megabytes."""

VERSION = "0.1.0"

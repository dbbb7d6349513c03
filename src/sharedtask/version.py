"""The version of the library, which caller and workers must share."""

VERSION = "0.1.0"

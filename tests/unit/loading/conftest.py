from support.fixtures import s3, s3_server  # noqa: F401

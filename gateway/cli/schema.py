"""nbd-gateway schema: the configuration's JSON schema, for editors."""


def schema() -> int:
    """Print the JSON schema of gateway.toml, with which an editor completes and checks it.

    For example:

      nbd-gateway schema > gateway.schema.json
    """
    import json

    from gateway.config import schema as json_schema

    print(json.dumps(json_schema(), indent=2))
    return 0

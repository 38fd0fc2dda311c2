"""What Schemathesis may not ask."""

import os

import schemathesis

# A token's text is pindah_ID_SECRET.
OURS = os.environ["PINDAH_TOKEN"].split("_")[1]
OTHER = os.environ["PINDAH_OTHER_TOKEN"]


@schemathesis.hook
def map_path_parameters(context, path_parameters):
    """Whoever revokes the token that he asks with is refused all that comes after."""
    if path_parameters and path_parameters.get("token") == OURS:
        return {**path_parameters, "token": OTHER}
    return path_parameters

#!/bin/sh
# Takes out of the installed torch what only its own tests, and builds against it, need: about 190 MB.
set -eu
cd "$(python -c 'import importlib.util; print(importlib.util.find_spec("torch").submodule_search_locations[0])')"
rm -rf test include bin/*[tT]est* bin/protoc* bin/upgrader_models
python -I -c "import torch; torch.ones(1)"

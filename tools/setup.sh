#!/usr/bin/env bash
# Make .venv with llmir in it, and install what Debian has to give, each once.
#
#   tools/setup.sh compile            llmir with the packages that compiling needs
#   tools/setup.sh dev vulkan qemu    what the tests need; Mesa's Vulkan device in software;
#                                     and qemu, which runs the kernels for 64-bit Arm
#   tools/setup.sh glslang            the compiler of the Vulkan kernels, and SPIR-V's validator
#   tools/setup.sh ptxas              NVIDIA's assembler (PyPI, 40 MB), which checks the GPU kernels
#   tools/setup.sh chromium           the browser that the server's page is tested in
#
# An argument is an extra of pyproject.toml, "vulkan", "qemu", "glslang", "ptxas" or "chromium".  An
# extra is installed again when pyproject.toml changes.  PYTHON names another interpreter than python3.
set -euo pipefail
cd "$(dirname "$0")/.."
python=${PYTHON:-python3}
venv=.venv
ptxas_wheel=nvidia-cuda-nvcc-cu12==12.9.86
export PIP_DISABLE_PIP_VERSION_CHECK=1

say() { printf 'setup: %s\n' "$*" >&2; }
die() { say "$*"; exit 1; }

# apt_install WHY PACKAGE…
apt_install() {
  local why=$1 root=()
  shift
  command -v apt-get >/dev/null || die "$why: install $* (there is no apt-get here)"
  if [ "$(id -u)" -ne 0 ]; then
    command -v sudo >/dev/null || die "$why: as root, run: apt-get install $*"
    root=(sudo)
  fi
  say "$why: apt-get install $*"
  "${root[@]}" apt-get -qq update
  "${root[@]}" env DEBIAN_FRONTEND=noninteractive \
    apt-get -qq install --yes --no-install-recommends "$@" >/dev/null
}

make_venv() {
  [ ! -x $venv/bin/python ] || ! $venv/bin/python -m pip --version >/dev/null 2>&1 || return 0
  command -v "$python" >/dev/null || apt_install "$python is missing" python3 python3-venv
  "$python" -c 'import sys; sys.exit(sys.version_info < (3, 11))' ||
    die "llmir needs Python 3.11 or newer; $python is $("$python" --version).  Set PYTHON"
  # Debian's python3 has no ensurepip; whether a venv can be made shows only by trying.
  if ! "$python" -m venv $venv >/dev/null 2>&1; then
    apt_install "$python cannot make virtual environments" python3-venv
    "$python" -m venv --clear $venv
  fi
  say "made $venv with $($venv/bin/python --version)"
}

# install_extra NAME
install_extra() {
  local stamp=$venv/.installed-$1 key quiet=-q
  key=$(sha256sum <pyproject.toml)
  [ "$(cat "$stamp" 2>/dev/null)" != "$key" ] || return 0
  [ ! -t 1 ] || quiet=  # a person sees pip's own progress
  say "installing llmir[$1] into $venv; the first time takes some minutes"
  $venv/bin/python -m pip install $quiet -e ".[$1]"
  echo "$key" >"$stamp"
}

install_vulkan() {
  ! compgen -G '/usr/share/vulkan/icd.d/lvp_icd*.json' >/dev/null ||
    ! /sbin/ldconfig -p | grep -q libvulkan.so.1 || return 0
  apt_install "the Vulkan tests need a device" mesa-vulkan-drivers libvulkan1
}

install_qemu() {
  [ "$(uname -m)" = aarch64 ] || command -v qemu-aarch64 >/dev/null ||
    apt_install "the kernels for 64-bit Arm are tested under qemu" qemu-user
}

install_glslang() {
  { command -v glslangValidator && command -v spirv-val; } >/dev/null ||
    apt_install "the Vulkan kernels are compiled with glslang" glslang-tools spirv-tools
}

# Of the wheel, whose other 60 MB are a compiler that nothing here uses, the assembler alone.
install_ptxas() {
  local into=.cache/ptxas wheels
  [ ! -x $into/bin/ptxas ] || return 0
  case $(uname -sm) in
    'Linux x86_64' | 'Linux aarch64') ;;
    *) die "PyPI has no ptxas for $(uname -sm): the PTX is checked on Linux" ;;
  esac
  make_venv
  say "downloading $ptxas_wheel, for ptxas"
  wheels=$(mktemp -d)
  $venv/bin/python -m pip download -q --no-deps --only-binary=:all: -d "$wheels" "$ptxas_wheel"
  mkdir -p $into/bin
  $venv/bin/python - "$wheels" $into/bin/ptxas <<'EOF'
import pathlib, sys, zipfile
(wheel,) = pathlib.Path(sys.argv[1]).glob("*.whl")
with zipfile.ZipFile(wheel) as archive:
    data = archive.read("nvidia/cuda_nvcc/bin/ptxas")
target = pathlib.Path(sys.argv[2])
partial = target.with_suffix(".partial")
partial.write_bytes(data)
partial.chmod(0o755)
partial.replace(target)
EOF
  rm -rf "$wheels"
}

install_chromium() {
  command -v chromium >/dev/null || command -v google-chrome >/dev/null ||
    apt_install "the server's page is tested in a browser" chromium
}

for what in "$@"; do
  case $what in
    vulkan) install_vulkan ;;
    qemu) install_qemu ;;
    glslang) install_glslang ;;
    ptxas) install_ptxas ;;
    chromium) install_chromium ;;
    *)
      make_venv
      install_extra "$what"
      ;;
  esac
done

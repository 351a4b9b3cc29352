# Sourced by the scripts of deploy/, in the folder of the checkout: a Python with everything installed.
# shellcheck shell=sh

# What a foreign environment says about Python is meant for another project.
unset PYTHONHOME PYTHONPATH VIRTUAL_ENV PYTHONDONTWRITEBYTECODE

# run_installed runtime|dev SCRIPT [ARGUMENT...]: makes .venv, installs what the lock names and becomes the Python script.
run_installed() {
    base=$(find_python) || exit 3
    "$base" -I deploy/lib/install.py "$1"
    shift
    exec .venv/bin/python "$@"
}

# find_python: prints a Python 3.11 or later that can make virtual environments.
find_python() {
    bare=
    for candidate in python3 python3.14 python3.13 python3.12 python3.11; do
        # Run, not only looked up: a version manager's stand-in may have nothing behind it.
        "$candidate" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null || continue
        if "$candidate" -c 'import ensurepip, venv' 2>/dev/null; then
            echo "$candidate"
            return
        fi
        bare=${bare:-$candidate}
    done
    if [ -z "$bare" ]; then
        echo 'Python 3.11 or later was not found: install it (Debian, Ubuntu: python3 and python3-venv) and run this again' >&2
        return 1
    fi
    # Debian and Ubuntu keep the module that makes virtual environments in a package of its own.
    package=$("$bare" -c 'import sys; print("python%d.%d-venv" % sys.version_info[:2])')
    if ! deploy/lib/system-install "$package" 'virtual environments' >&2; then
        echo "$bare cannot make virtual environments: install $package (or what your system calls it) and run this again" >&2
        return 1
    fi
    echo "$bare"
}

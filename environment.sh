# Sourced by demo.sh and test.sh: enter .venv, made where there is none that works here, with what a requirements file
# asks for, in the versions of constraints.txt.

# A half-made environment does not; one that was moved or copied leads elsewhere; one's Python may have gone or changed.
works_here() {
    # shellcheck disable=SC1091
    (
        . .venv/bin/activate && [ "$VIRTUAL_ENV" -ef .venv ] &&
            .venv/bin/python -c 'import os, sysconfig; os.listdir(sysconfig.get_path("purelib"))'
    ) >/dev/null 2>&1
}

enter_environment() {
    local requirements=$1 versions stamp=.venv/.installed
    versions=$(cat requirements*.txt constraints.txt | cksum)
    works_here || "${PYTHON:-python3}" -m venv --clear .venv
    # shellcheck disable=SC1091
    . .venv/bin/activate
    grep -qxF "$versions" "$stamp" 2>/dev/null || rm -f "$stamp" # of other versions
    if ! grep -qxF "$requirements" "$stamp" 2>/dev/null; then
        echo "installing $requirements into .venv"
        python -m pip install --quiet --disable-pip-version-check -r "$requirements" -c constraints.txt
        printf '%s\n' "$versions" "$requirements" >>"$stamp"
    fi
}

# Sourced by demo.sh and test.sh: enter .venv, made where there is none, with what a requirements file asks for, in the
# versions of constraints.txt.

enter_environment() {
    local requirements=$1 versions stamp=.venv/.installed
    versions=$(cat requirements*.txt constraints.txt | cksum)
    [ -x .venv/bin/python ] && [ -f .venv/bin/activate ] || "${PYTHON:-python3}" -m venv .venv # activate comes last
    # shellcheck disable=SC1091
    . .venv/bin/activate
    grep -qxF "$versions" "$stamp" 2>/dev/null || rm -f "$stamp" # of other versions
    if ! grep -qxF "$requirements" "$stamp" 2>/dev/null; then
        echo "installing $requirements into .venv"
        python -m pip install --quiet --disable-pip-version-check -r "$requirements" -c constraints.txt
        printf '%s\n' "$versions" "$requirements" >>"$stamp"
    fi
}

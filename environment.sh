# Sourced by demo.sh and test.sh: enter .venv, made where there is none, with what a requirements file asks for, in the
# versions of constraints.txt.

enter_environment() {
    local requirements=$1 wanted stamp=.venv/.installed
    wanted="$requirements $(cat requirements*.txt constraints.txt | cksum)"
    [ -x .venv/bin/python ] || "${PYTHON:-python3}" -m venv .venv
    # shellcheck disable=SC1091
    . .venv/bin/activate
    if ! grep -qxF "$wanted" "$stamp" 2>/dev/null; then
        echo "installing $requirements into .venv"
        python -m pip install --quiet --disable-pip-version-check -r "$requirements" -c constraints.txt
        echo "$wanted" >>"$stamp"
    fi
}

# A RAUC that only pretends, for tests: slots are files of $HERE, `running` says which one runs. A
# bundle is a line: COMPATIBLE VERSION SIGNER. It says what the real one says.
cd "$HERE"
running=$(cat running 2>/dev/null || echo A)
[ "$running" = A ] && other=B || other=A
state() { [ -e "good-$1" ] && echo good || echo bad; }
slot() {
    printf '{"root.%s":{"bootname":"%s","state":"%s","boot_status":"%s"' "$1" "$1" "$2" "$(state "$1")"
    [ ! -e "slot-$1" ] || printf ',"slot_status":{"bundle":{"version":"%s"}}' "$(cut -d' ' -f2 "slot-$1")"
    printf '}}'
}
case "$1 $2" in
"status mark-good") touch "good-$running" ;;
"status mark-bad") rm -f "good-$other" ;;
"status mark-active")
    [ "$3" = other ] && first=$other || first=$running
    echo "$first" >first
    touch "good-$first"
    ;;
"status "*)
    echo '{"compatible":"pindah-x86_64","slots":['"$(slot "$running" booted),$(slot "$other" inactive)"']}'
    ;;
"info "*)
    read -r compatible version signer <"$3"
    echo "rauc-Message: Reading bundle: $3" >&2
    case "$signer" in
    ours | torn) echo '{"compatible":"'"$compatible"'","version":"'"$version"'"}' ;;
    '') echo "Invalid bundle format: Signature size exceeds bundle size" >&2; exit 1 ;;
    *) echo "signature verification failed: Verify error: self-signed certificate" >&2; exit 1 ;;
    esac
    ;;
"install "*)
    echo begun >>installs
    while [ -e hold ]; do sleep 0.1; done
    echo "installing"
    echo "  0% Installing"
    echo " 40% Copying image to root.1"
    if grep -q torn "$2"; then
        echo "LastError: Installation error: Failed updating slot root.1: Input/output error"
        exit 1
    fi
    rm -f "good-$other"
    cp "$2" "slot-$other"
    echo "100% Installing done."
    ;;
esac

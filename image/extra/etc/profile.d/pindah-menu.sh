# On a console root gets the menu. Its own shell, the installer's, and SSH do not; when it fails there
# is the shell.
if [ -z "${PINDAH_MENU-}" ] && [ "$(id -u)" -eq 0 ]; then
    case $(tty) in
    /dev/tty[0-9]* | /dev/ttyS[0-9]*) /usr/bin/pindah-install menu && exit ;;
    esac
fi

# shellcheck shell=bash
# Completes the command line of docker_graph_driver.py in bash. Source it, or put it into /etc/bash_completion.d/.
#
# What there is to complete is read from the --help of the program on the line, which is run for it, in about 0.1 s: no name
# of a subcommand or an option stands here.

# PROGRAM WORD BEFORE: what bash calls a completion with.
_docker_graph_driver() {
    local program=$1 word=$2 before=$3 subcommand=() help options kind
    # The = of --root=/srv is a word of its own for bash.
    [[ $word != = ]] || word=
    [[ $before != = ]] || before=${COMP_WORDS[COMP_CWORD - 2]}
    [[ $COMP_CWORD == 1 || ${COMP_WORDS[1]} == -* ]] || subcommand=("${COMP_WORDS[1]}")
    COMPREPLY=()
    # bash has not expanded it yet.
    [[ ${program:0:2} != \~/ ]] || program=$HOME/${program:2}
    help=$("$program" "${subcommand[@]}" --help 2>/dev/null) || return
    # Until Python 3.10 they were "optional arguments".
    options=$(sed '/^option.*:$/,/^$/!d' <<<"$help")
    if [[ $before == --* && $options =~ [[:space:]]$before' '([A-Z]+|\{[a-z,]+\}) ]]; then
        kind=${BASH_REMATCH[1]}
        case $kind in
        \{*) mapfile -t COMPREPLY < <(compgen -W "$(tr '{,}' '   ' <<<"$kind")" -- "$word") ;;
        DIR) compopt -o filenames && mapfile -t COMPREPLY < <(compgen -d -- "$word") ;;
        FILE | PATH | SOCKET) compopt -o filenames && mapfile -t COMPREPLY < <(compgen -f -- "$word") ;;
        esac
    elif [[ $word == -* ]]; then
        mapfile -t COMPREPLY < <(compgen -W "$(grep --only-matching --extended-regexp -e '^ +(-[a-z], )?--[a-z-]+|, --[a-z-]+' <<<"$options" | grep --only-matching -e '--.*')" -- "$word")
    elif [[ $COMP_CWORD == 1 ]]; then
        # The lines below "subcommands:" stand further in.
        mapfile -t COMPREPLY < <(compgen -W "$(sed --quiet '/^subcommands:/,/^[^ s]/s/^  \([a-z]*\) .*/\1/p' <<<"$help")" -- "$word")
    fi
}

complete -F _docker_graph_driver docker_graph_driver.py

# bash completion for sbx: the command itself lists what fits.
_sbx_complete() {
	local cur words
	cur=${COMP_WORDS[COMP_CWORD]}
	words=("${COMP_WORDS[@]:1:COMP_CWORD-1}")
	if [[ $cur == -* ]]; then
		mapfile -t COMPREPLY < <(compgen -W "$(sbx "${words[@]}" "$cur" --generate-bash-completion 2>/dev/null)" -- "$cur")
	else
		mapfile -t COMPREPLY < <(compgen -W "$(sbx "${words[@]}" --generate-bash-completion 2>/dev/null)" -- "$cur")
	fi
}
complete -o bashdefault -o default -F _sbx_complete sbx

#compdef sbx
# Completion of sbx in zsh: source <(sbx completion zsh), after compinit
_sbx() {
	local -a lines described
	local line then
	lines=("${(@f)$("${(Q)words[1]}" __complete "${(@Q)words[2,CURRENT-1]}" "${(Q)PREFIX}" 2>/dev/null)}")
	then=$lines[-1]
	lines[-1]=()
	for line in "${lines[@]}"; do
		# A colon ends the word for _describe.
		described+=("${${line%%$'\t'*}//:/\\:}${${(M)line%%$'\t'*}:+:${line#*$'\t'}}")
	done
	case $then in
	:nospace) _describe -V sbx described -S '' ;;
	:files) if (($#described)); then _describe -V sbx described; else _files; fi ;;
	:dirs) _files -/ ;;
	*) _describe -V sbx described ;;
	esac
}
if [[ $funcstack[1] == _sbx ]]; then
	_sbx "$@"
else
	compdef _sbx sbx
fi

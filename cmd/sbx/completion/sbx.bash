# Completion of sbx in bash: source <(sbx completion bash)
_sbx() {
	# bash splits words at = and :, which belong to them here.
	local words=() word glue= cur real=${COMP_WORDS[COMP_CWORD]} i
	for ((i = 1; i <= COMP_CWORD; i++)); do
		word=${COMP_WORDS[i]}
		if ((i > 1)) && [[ $glue || $word == [=:]* ]]; then
			words[${#words[@]} - 1]+=$word
		else
			words+=("$word")
		fi
		glue=
		[[ $word == *[=:] && $COMP_WORDBREAKS == *"${word: -1}"* ]] && glue=1
	done
	cur=${words[${#words[@]} - 1]}
	[[ $real == [=:] ]] && real=

	local lines then line
	mapfile -t lines < <("$1" __complete "${words[@]}" 2>/dev/null)
	COMPREPLY=()
	((${#lines[@]})) || return
	then=${lines[${#lines[@]} - 1]}
	unset "lines[${#lines[@]} - 1]"
	for line in "${lines[@]}"; do
		# With descriptions in a listing only: else they would be inserted.
		if [[ $COMP_TYPE == 63 && $line == *$'\t'* ]]; then
			printf -v line '%-22s %s' "${line%%$'\t'*}" "${line#*$'\t'}"
			line=${line:0:${COLUMNS:-80}-2}
		fi
		line=${line%%$'\t'*}
		COMPREPLY+=("${line:${#cur}-${#real}}")
	done
	case $then in
	:nospace) compopt -o nospace ;;
	:files) ((${#COMPREPLY[@]})) || compopt -o default ;;
	:dirs) compopt -o dirnames ;;
	esac
}
complete -o nosort -F _sbx sbx 2>/dev/null || complete -F _sbx sbx

# Completion of sbx in fish: sbx completion fish | source
function __sbx_complete
    set -l words (commandline -opc)
    set -l current (commandline -ct)
    set -l lines ($words[1] __complete $words[2..-1] "$current" 2>/dev/null)
    test (count $lines) -gt 0; or return
    set -l then $lines[-1]
    set -e lines[-1]
    switch $then
        case :files
            test (count $lines) -gt 0; or __fish_complete_path "$current"
        case :dirs
            __fish_complete_directories "$current"
    end
    # fish adds no space after = by itself.
    test (count $lines) -gt 0; and printf '%s\n' $lines
end
complete -c sbx -f -a '(__sbx_complete)'

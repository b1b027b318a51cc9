# A session that waits: what it is to do comes on stdin, as lines of shell with a line before and after
# them that is not among them: news, or a command, which it goes on to. Each time that it waits it says
# so to 3. A guest whose VM has no more to say lets it go.
start_awakener 3
while [ $# = 0 ]; do
    [ -n "$helper" ] || echo ready >&3
    IFS= read -r mark || exit 9
    request=
    while IFS= read -r line || exit 9; [ "$line" != "$mark" ]; do
        request="$request$line
"
    done
    eval "$request"
done
dismiss_awakener
echo "$1" >&6
exec 6>&-

#!/bin/sh
# A driver's command that believes a file: what dynorch asks of `nvidia-smi`, without a GPU.
#
# $SMI_STUB names the file. One line per device, in the order of the indices:
#     UUID,NAME,TOTAL_MIB,USED_MIB,MIG      USED_MIB may be "lost"; MIG is Enabled or Disabled
# and "apps,UUID,PID,USED_MIB" for a process, "hang" for a driver that does. Of MIG instances the
# answers are files beside it: the file's name with .L and .xml.
for word; do
    case $word in
    --query-gpu=*) query=${word#*=} ;;
    --query-compute-apps=*) query=apps ;;
    -q) query=people ;;
    -L) query=list ;;
    -x) query=xml ;;
    --id=*) only=${word#*=} ;;
    esac
done
grep -qx hang "$SMI_STUB" && exec sleep 3600
case $query in
list) exec cat "$SMI_STUB.L" ;;
xml) exec cat "$SMI_STUB.xml" ;;
esac
exec awk -F, -v query="$query" -v only="$only" '
    $1 == "apps" { if (query == "apps" && $2 == only) print $3 ", " $4; next }
    { at = number++ }
    query == "apps" || (only != "" && index("," only ",", "," $1 ",") == 0) { next }
    $4 == "lost" { print "Unable to determine the device handle for GPU" at ": GPU is lost.  Reboot the system, it says"; exit 15 }
    query == "people" { print "    Minor Number                          : " at + 7; next }
    {
        fact["index"] = at; fact["uuid"] = $1; fact["name"] = $2; fact["memory.total"] = $3
        fact["memory.used"] = $4; fact["memory.free"] = $3 - $4; fact["mig.mode.current"] = $5
        count = split(query, names, ",")
        line = fact[names[1]]
        for (i = 2; i <= count; i++) line = line ", " fact[names[i]]
        print line
    }' "$SMI_STUB"

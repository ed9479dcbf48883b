// Kafka's own command line tools, one after the other in one process: java -cp 'libs/*:classes' Tools < commands
//
// A command is a line: a class, its arguments, and what it reads after ` -- `, with `\n` for a new line. What it says is
// followed by a line `exit CODE`.

import java.io.*;
import java.lang.reflect.InvocationTargetException;
import java.nio.charset.StandardCharsets;
import java.util.*;
import org.apache.kafka.common.utils.Exit;

public class Tools {
    /** What the tool that runs would have ended its process with: the first code is meant. */
    static Integer code;

    /** What it would have done at the end of its process, such as to send what it still has. */
    static final List<Runnable> hooks = new ArrayList<>();

    public static void main(String[] args) throws Exception {
        Exit.setExitProcedure((ended, message) -> code = code == null ? ended : code);
        Exit.setHaltProcedure((ended, message) -> code = code == null ? ended : code);
        Exit.setShutdownHookAdder((name, hook) -> hooks.add(hook));
        var out = System.out;
        System.setErr(out);
        var commands = new BufferedReader(new InputStreamReader(System.in));
        for (String line; (line = commands.readLine()) != null;) {
            var parts = line.split(" -- ", 2);
            if (parts.length > 1) {
                var input = parts[1].replace("\\n", "\n").getBytes(StandardCharsets.UTF_8);
                System.setIn(new ByteArrayInputStream(input));
            }
            var words = parts[0].split(" ");
            out.println("exit " + run(words[0], Arrays.copyOfRange(words, 1, words.length)));
            out.flush();
        }
        Runtime.getRuntime().halt(0);
    }

    static int run(String tool, String[] args) throws Exception {
        code = null;
        try {
            Class.forName(tool).getMethod("main", String[].class).invoke(null, (Object) args);
        } catch (InvocationTargetException error) {
            // A tool that was to end goes on after it, and finds that odd.
            if (code == null) throw error;
        }
        hooks.forEach(Runnable::run);
        hooks.clear();
        return code == null ? 0 : code;
    }
}
